"""Several sets of BatchNorm layers in one network, which share all other weights."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

SECOND = "auto"  # the second set of bn1 is bn1.auto


def add_second_batchnorms(model: nn.Module) -> None:
    """Give each BatchNorm layer NAME a second set of weights and statistics, NAME.auto, which starts as the first.

    Without ``second_batchnorms`` the network computes as before.
    """
    for module in [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]:
        module.add_module(SECOND, copy.deepcopy(module))


@contextmanager
def second_batchnorms(model: nn.Module) -> Iterator[None]:
    """Compute with the second set of BatchNorm layers within the context."""
    _exchange(model)
    try:
        yield
    finally:
        _exchange(model)


def _exchange(model: nn.Module) -> None:
    for first in model.modules():
        second = getattr(first, SECOND, None)
        if isinstance(first, nn.BatchNorm2d) and second is not None:
            first._parameters, second._parameters = second._parameters, first._parameters
            first._buffers, second._buffers = second._buffers, first._buffers
