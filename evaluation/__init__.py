"""AutoAttack, from a checkpoint to a result. In a notebook: ``from evaluation import evaluate``."""

from evaluation.api import Result, evaluate

__all__ = ["Result", "evaluate"]
