"""Training from a notebook or another program: ``train(config) -> Run``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from engine.config import TrainConfig
from engine.trainer import Trainer
from utils.files import read_metrics


@dataclass(frozen=True)
class Run:
    """A finished training run.

    Attributes:
        model: the student (its average, where the run keeps one) after the last epoch, in eval mode, on the run's
            device: images (B, 3, H, W) in [0, 1] -> logits (B, C).
        metrics: the entries of metrics.jsonl, one an epoch: losses, and accuracies in percent.
        logs: folder of train.log, metrics.jsonl, config.json and curves.png.
        checkpoints: folder of last.pt, best.pt and student-epochNNN.pt.
    """

    config: TrainConfig
    model: nn.Module
    metrics: list[dict[str, Any]]
    logs: Path
    checkpoints: Path


def train(config: TrainConfig) -> Run:
    """Train as ``train_lbgat.py`` does; a run that was interrupted resumes, and one that is finished is only read.

    PyTorch's seed, flags of TF32 and choice of deterministic algorithms are then those of the run.

    Args:
        config: ``TrainConfig.create(NAME=value, ...)``: the flags of train_lbgat.py with underscores, the method's own
            parameters included.

    Raises:
        UserError: impossible settings, unreadable data, a folder of another run, or a loss that is not finite.
        engine.stopping.Stopped: SIGTERM, Ctrl-C or ``max_minutes`` stopped it, after saving last.pt.
    """
    trainer = Trainer(config)
    trainer.fit()
    logs = Path(config.log_dir) / config.run_name
    model = trainer.average.model if trainer.average else trainer.student
    return Run(config, model.eval(), read_metrics(logs / "metrics.jsonl"), logs, trainer.checkpoints.folder)
