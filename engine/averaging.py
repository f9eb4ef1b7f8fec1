"""Averages of the student's weights (Polyak averaging; stochastic weight averaging against robust overfitting)."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from engine.config import TrainConfig
from models.accelerate import AcceleratedModel


class WeightAverage:
    """average = tau average + (1 - tau) weights over the whole state, BatchNorm statistics included; counts are copied.

    Without a ramp the first update copies the weights, so that the random initial ones do not count. After k updates
    with weights w_1 ... w_k it is tau^(k-1) w_1 + (1 - tau) sum_{i=2..k} tau^(k-i) w_i.

    Args:
        student: what to average; ``network`` evaluates the average in the same way.
        tau: in [0, 1).
        warmup: in updates: the average is the student in the first ``warmup`` updates, and begins with the next one
            (DAJAT).
        ramp: whether update k, from k = warmup on, has min(tau, (1 + k - warmup) / (10 + k - warmup)) for tau, and
            copies the BatchNorm statistics (the PyTorch form of Gowal et al. 2020).
    """

    def __init__(self, student: AcceleratedModel, tau: float, warmup: float = 0.0, ramp: bool = False):
        self.network = AcceleratedModel(copy.deepcopy(student.model), student.acceleration, student.autocast)
        self.tau, self.warmup, self.ramp, self.updates = tau, warmup, ramp, 0

    @property
    def model(self) -> nn.Module:
        return self.network.model

    @torch.no_grad()
    def update(self, weights: dict[str, Tensor]) -> None:
        """Update the average with a state dict of the student."""
        self.updates += 1
        tau, copied = self._tau(self.updates), set()
        if self.ramp:
            copied = {name for name, _ in self.model.named_buffers()}
        for name, average in self.model.state_dict().items():
            if tau and average.is_floating_point() and name not in copied:
                average.lerp_(weights[name], 1 - tau)
            else:
                average.copy_(weights[name])

    def _tau(self, k: int) -> float:
        """The weight of the average so far in update k (1, 2, ...)."""
        since = k - self.warmup
        if self.ramp:
            return min(self.tau, (1 + since) / (10 + since)) if since >= 0 else 0.0
        return self.tau if since > 1 else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "weights": self.model.state_dict()}


def create_average(config: TrainConfig, student: AcceleratedModel, steps: int) -> WeightAverage | None:
    """The average that the configuration asks for, if any; ``steps`` are those of an epoch."""
    if config.average_every == "none":
        return None
    updates = config.epochs * (steps if config.average_every == "step" else 1)
    return WeightAverage(student, config.average_tau, config.average_warmup * updates, config.average_ramp)
