"""Mean and standard deviation of the pixels, subtracted and divided inside the network: attacks stay in [0, 1]."""

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from utils.errors import UserError


@dataclass(frozen=True)
class Normalization:
    """Of the three channels, in units of the pixel range [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def usable(self) -> bool:
        """Whether they can be of pixels in [0, 1]."""
        return all(0 <= m <= 1 for m in self.mean) and all(0 < s <= 1 for s in self.std)

    def __str__(self) -> str:
        """``0.4914,0.4822,0.4465/0.247,0.2435,0.2616``, as ``--normalize`` takes it."""
        return "/".join(",".join(f"{value:.9g}" for value in part) for part in (self.mean, self.std))


NAMED = {
    "cifar10": Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": Normalization((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}  # of the training images


def parse_normalization(text: str) -> Normalization | None:
    """``cifar10``, ``cifar100``, ``M,M,M/S,S,S``, or ``none`` for None.

    Raises:
        UserError: none of these, or means and standard deviations that are not of pixels in [0, 1].
    """
    if text == "none":
        return None
    if text in NAMED:
        return NAMED[text]
    try:
        mean, std = (tuple(float(value) for value in part.split(",")) for part in text.split("/"))
        if not (len(mean) == len(std) == 3 and Normalization(mean, std).usable):
            raise ValueError
    except ValueError as error:
        raise UserError(
            f"--normalize {text[:60]!r}: choose none, cifar10 or cifar100, or write three means and three standard "
            "deviations in [0, 1], such as 0.5,0.5,0.5/0.25,0.25,0.25"
        ) from error
    return Normalization(mean, std)


class Normalize(nn.Module):
    """(x - mean) / std of images (B, 3, H, W); mean and std are buffers, so they are part of the state dict."""

    def __init__(self, normalization: Normalization):
        super().__init__()
        self.register_buffer("mean", torch.tensor(normalization.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(normalization.std).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def with_normalization(model: nn.Module, normalization: Normalization | None) -> nn.Module:
    """The network on normalised images, its names ``model.*`` beside ``normalize.mean`` and ``normalize.std``; itself
    where there is nothing to normalise."""
    if normalization is None:
        return model
    return nn.Sequential(OrderedDict(normalize=Normalize(normalization), model=model))
