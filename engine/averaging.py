"""Averages of the student's weights (Polyak averaging; stochastic weight averaging against robust overfitting)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from models.accelerate import AcceleratedModel


class WeightAverage:
    """average = tau average + (1 - tau) weights over the whole state, BatchNorm statistics included; counts are copied.

    The first update copies the weights, so that the random initial ones do not count. After k updates with weights
    w_1 ... w_k it is tau^(k-1) w_1 + (1 - tau) sum_{i=2..k} tau^(k-i) w_i.

    Args:
        student: what to average; ``network`` evaluates the average in the same way.
        tau: in [0, 1).
    """

    def __init__(self, student: AcceleratedModel, tau: float):
        self.network = AcceleratedModel(copy.deepcopy(student.model), student.acceleration, student.autocast)
        self.tau, self.updates = tau, 0

    @property
    def model(self) -> nn.Module:
        return self.network.model

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor]) -> None:
        """Update the average with a state dict of the student."""
        for name, average in self.model.state_dict().items():
            if self.updates and average.is_floating_point():
                average.lerp_(weights[name], 1 - self.tau)
            else:
                average.copy_(weights[name])
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.model.state_dict()}
