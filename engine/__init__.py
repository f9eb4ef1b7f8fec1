"""Training. In a notebook: ``from engine import TrainConfig, train``."""

from engine.api import Run, train
from engine.config import TrainConfig

__all__ = ["Run", "TrainConfig", "train"]
