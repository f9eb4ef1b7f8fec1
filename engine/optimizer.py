"""The optimizer of a run."""

from collections.abc import Sequence

import torch
from torch import nn

from engine.config import TrainConfig
from utils.options import require


def create_optimizer(config: TrainConfig, networks: Sequence[nn.Module]) -> torch.optim.SGD:
    """One SGD over all trainable parameters; with ``no_norm_decay`` BatchNorm's are a second group without decay.

    Raises:
        UserError: nothing to train; or a momentum that is not for Nesterov's method, or not for the schedule.
    """
    require(config.momentum > 0 or not config.nesterov, "--nesterov needs a momentum: set --momentum above 0")
    lowered = config.schedule == "cyclic"
    require(config.momentum >= 0.1 or not lowered, "--schedule cyclic lowers --momentum by 0.1: set it to 0.1 or more")
    parameters = [p for net in networks for p in net.parameters() if p.requires_grad]
    trained = any(p.requires_grad for p in networks[0].parameters())
    require(trained, "the student has no weights to train: leave requires_grad_(False) out of it")
    groups = [{"params": parameters}]
    if config.no_norm_decay:
        norms = [m for net in networks for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        undecayed = {id(p) for m in norms for p in m.parameters()}
        groups = [
            {"params": [p for p in parameters if id(p) not in undecayed]},
            {"params": [p for p in parameters if id(p) in undecayed], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov,
        fused=True,
    )
