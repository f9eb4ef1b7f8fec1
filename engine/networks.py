"""The networks of a run beside the student."""

import torch
from torch import nn

from engine.config import TrainConfig
from losses.base import FROZEN_PASSES, Objective
from models import create_model
from models.checkpoint import load_network
from models.weights import load_file
from utils.errors import UserError
from utils.options import require


def create_guide(config: TrainConfig, objective: Objective, num_classes: int, device: torch.device) -> nn.Module | None:
    """The guide, freshly initialised; for a method with a ``"helper"`` or ``"frozen"`` pass the frozen one of
    ``guide_checkpoint``, which normalises images as its file says and, where that holds bare weights, as the run does.
    None where the method has no such pass.

    Raises:
        UserError: no checkpoint where one is needed, one where none is, or one of another network.
    """
    frozen = bool({*FROZEN_PASSES} & {*objective.passes})
    if config.guide_checkpoint and not frozen:
        raise UserError(f"--guide-checkpoint is for methods with a frozen guide, not for {config.method}: leave it out")
    if frozen and not config.guide_checkpoint:
        raise UserError(
            f"--method {config.method} needs a naturally trained network: add --guide-checkpoint FILE, "
            "for instance the last.pt of a --method natural run, and --guide with its --student"
        )
    if frozen:
        path = config.guide_checkpoint
        content = load_file(path)
        helper = load_network(content, path, config.guide, num_classes=num_classes)
        if helper.normalize == "none" and not (isinstance(content, dict) and "config" in content):
            # Bare weights do not tell how they were trained: as this run.
            helper = load_network(content, path, config.guide, config.normalize, num_classes)
        require(helper.num_classes == num_classes, f"{path} is of {helper.num_classes} classes, not of {num_classes}")
        return helper.model.to(device).eval().requires_grad_(False)
    return create_model(config.guide, num_classes, config.normalize).to(device) if "guide" in objective.passes else None
