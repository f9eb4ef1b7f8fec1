"""The networks of a run beside the student."""

import torch
from torch import nn

from engine.config import TrainConfig
from losses.base import Objective
from models import create_model
from models.weights import create_from_state, load_file, student_state
from utils.errors import UserError


def create_guide(config: TrainConfig, objective: Objective, num_classes: int, device: torch.device) -> nn.Module | None:
    """The guide, freshly initialised; for a method with a ``"helper"`` pass the frozen one of ``guide_checkpoint``.
    None where the method has neither pass.

    Raises:
        UserError: no checkpoint where one is needed, one where none is, or one of another network.
    """
    frozen = "helper" in objective.passes
    if config.guide_checkpoint and not frozen:
        raise UserError(f"--guide-checkpoint is for methods with a frozen guide, not for {config.method}: leave it out")
    if frozen and not config.guide_checkpoint:
        raise UserError(
            f"--method {config.method} needs a naturally trained network: add --guide-checkpoint FILE, "
            "for instance the last.pt of a --method natural run"
        )
    if frozen:
        path = config.guide_checkpoint
        state = student_state(load_file(path), path)
        return create_from_state(config.guide, num_classes, state, path).to(device).eval().requires_grad_(False)
    return create_model(config.guide, num_classes).to(device) if "guide" in objective.passes else None
