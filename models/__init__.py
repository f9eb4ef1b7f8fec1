"""Networks by name. Every one maps images in [0, 1], NCHW, to logits (B, C); no mean/std normalisation anywhere."""

import re

from torch import nn

from models.resnet import PreActResNet18, ResNet18
from models.wideresnet import WideResNet
from utils.errors import UserError

RESNETS = {
    "resnet18": ResNet18,
    "resnet18-guide": lambda num_classes: ResNet18(num_classes, strides=(1, 1, 2, 2)),
    "preactresnet18": PreActResNet18,
}


def create_model(name: str, num_classes: int) -> nn.Module:
    """A freshly initialised network.

    Args:
        name: ``wrn-D-K`` with D = 6n + 4 (10, 16, 22, 28, 34, ...) and K >= 1, ``resnet18``, ``resnet18-guide``
            (LBGAT's guide: strides 1, 1, 2, 2) or ``preactresnet18``.
        num_classes: number of logits C, at least 2.

    Raises:
        UserError: the name is none of these, or num_classes is below 2.
    """
    if num_classes < 2:
        raise UserError(f"a classifier needs at least 2 classes, not {num_classes}")
    if name in RESNETS:
        return RESNETS[name](num_classes)
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if match:
        depth, widen_factor = map(int, match.groups())
        if depth >= 10 and depth % 6 == 4 and widen_factor >= 1:
            return WideResNet(depth, widen_factor, num_classes)
        raise UserError(
            f"model {name!r}: a WideResNet's depth is 10, 16, 22, 28, 34, ... (6n+4) and its width at least 1"
        )
    raise UserError(f"unknown model {name!r}: choose wrn-DEPTH-WIDTH (such as wrn-34-10), {', '.join(RESNETS)}")
