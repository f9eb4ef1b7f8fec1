"""AutoAttack, from a checkpoint to a result. In a notebook: ``from evaluation import evaluate``."""

from evaluation.api import EvaluationResult, evaluate

__all__ = ["EvaluationResult", "evaluate"]
