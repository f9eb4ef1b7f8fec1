"""What a training step costs, counted over one real step without computing it."""

import torch

from engine.config import TrainConfig
from engine.schedule import attack_spec
from engine.steps import create_step
from losses import create_objective
from losses.base import FROZEN_PASSES
from models import create_model
from models.batchnorm_sets import add_second_batchnorms
from utils.flops import FlopCounter

BATCH = 2


def step_gflop(config: TrainConfig, num_classes: int, height: int, width: int) -> float:
    """GFLOP per image of a training step, once weight perturbation has set in, if there is any; a multiply-add counts
    as two, and only convolutions and matrix products count."""
    with torch.device("meta"):
        student = create_model(config.student, num_classes)
        objective = create_objective(config.method, num_classes, **config.parameters)
        if objective.bn_sets > 1:
            add_second_batchnorms(student)
        guided = {"guide", *FROZEN_PASSES} & set(objective.passes)
        guide = create_model(config.guide, num_classes) if guided else None
        nets = [net for net in (student, guide) if net is not None]
        optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], config.lr, config.momentum)
        attack = attack_spec(config, objective.start, config.epochs)
        weights = (1.0, config.augment_view_weight)
        step = create_step(
            student, guide, objective, optimizer, attack, awp_gamma=config.awp_gamma, view_weights=weights
        )
        objective.moves = None  # as if every image took every step of the attack
        x, y = torch.empty(BATCH, 3, height, width), torch.zeros(BATCH, dtype=torch.int64)
        with FlopCounter() as counter:
            step([x] * max(objective.views, 1 + (config.augment_view_weight > 0)), y)
    return counter.total / BATCH / 1e9
