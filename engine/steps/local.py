"""BatchNorm of each process by its own rows, as DataParallel had it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from utils.distributed import ProcessGroup


class LocalStatistics:
    """A step after which every process has the running statistics of process 0. Everything else is the wrapped step's.

    A process without rows of the last batch has none to add: its own statistics would not be finite.
    """

    def __init__(self, step: Any, group: ProcessGroup):
        self.step, self.group = step, group
        networks = [net.model for net in (step.student, step.guide) if net is not None]
        self._buffers = [buffer for net in networks for buffer in net.buffers()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(
        self, views: Sequence[Tensor], y: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        terms = self.step(views, y, generator)
        self.group.broadcast_(*self._buffers)
        return terms
