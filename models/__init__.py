"""Networks by name. Every one maps images in [0, 1], NCHW, to logits (B, C); a mean and std are inside the network."""

import os
import re

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from models.custom import check_outputs, create_custom, is_custom
from models.normalize import parse_normalization, with_normalization
from models.resnet import PreActResNet18, ResNet18, ResNet50
from models.wideresnet import WideResNet
from models.wideresnet_swish import SwishWideResNet
from utils.errors import UserError

__all__ = ["RESNETS", "canonical_name", "check_images", "create_model", "load"]
MOST_DEPTH, MOST_WIDTH, MOST_CLASSES = 1000, 64, 100_000  # beyond any published network
RESNETS = {
    "resnet18": ResNet18,
    "resnet18-guide": lambda num_classes: ResNet18(num_classes, strides=(1, 1, 2, 2)),
    "preactresnet18": PreActResNet18,
    "preactresnet18-yopo": lambda num_classes: PreActResNet18(num_classes, final_bn=False),
    "resnet50": ResNet50,
}
PUBLISHED_NAMES = {"WideResNet": "wrn", "ResNet-18": "resnet18", "PreActResNet-18": "preactresnet18"}  # of RobustBench


def canonical_name(name: str) -> str:
    """``WideResNet-34-10`` and other architectures as RobustBench names them -> the names here; others unchanged."""
    return PUBLISHED_NAMES.get(name) or re.sub(
        r"^WideResNet(?=-\d+-\d+(-swish)?$)", PUBLISHED_NAMES["WideResNet"], name
    )


def create_model(name: str, num_classes: int, normalize: str = "none") -> nn.Module:
    """A freshly initialised network.

    Args:
        name: ``wrn-D-K`` with D = 6n + 4 (10, 16, 22, 28, 34, ...) and K >= 1, ``resnet18``, ``resnet18-guide``
            (LBGAT's guide: strides 1, 1, 2, 2), ``preactresnet18``, ``preactresnet18-yopo`` (without the final
            BN-ReLU), ``resnet50``, or ``wrn-D-K-swish`` (Gowal et al. 2020; it normalises the images itself); or a
            user's, ``my_net.py:MyNet`` or ``package.module:factory``, which is called with ``num_classes`` (its code is
            run).
        num_classes: number of logits C, 2 to 100,000.
        normalize: mean and std of the pixels inside the network: ``none``, ``cifar10``, ``cifar100`` or
            ``M,M,M/S,S,S``.

    Raises:
        UserError: the name is none of these, a size is out of range, the weights are larger than the memory, the
            network normalises by itself, or the user's code fails.
    """
    model, normalization = _create_plain(canonical_name(name), num_classes), parse_normalization(normalize)
    if normalization is not None and isinstance(model, SwishWideResNet):
        raise UserError(f"{name} normalises the images by itself: leave out --normalize")
    return with_normalization(model, normalization)


def _create_plain(name: str, num_classes: int) -> nn.Module:
    if not 2 <= num_classes <= MOST_CLASSES:
        raise UserError(f"a classifier needs at least 2 classes and at most {MOST_CLASSES}, not {num_classes}")
    if is_custom(name):
        return create_custom(name, num_classes)
    with torch.device("meta"):  # takes no memory
        size = sum(tensor.numel() * tensor.element_size() for tensor in _build(name, num_classes).state_dict().values())
    if size > _memory():
        raise UserError(f"the weights of {name} take {size >> 30} GiB, more than this machine's memory: choose another")
    return _build(name, num_classes)


def _memory() -> int:
    """Bytes of memory that the machine has; a large number where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 1 << 62


class _WithoutDrawing(TorchFunctionMode):
    """Leaves out torch.nn.init: on the device "meta" there is nothing to draw, and trying to loads torch's compiler,
    which takes a second and 100 MB."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__module__", None) == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


def _build(name: str, num_classes: int) -> nn.Module:
    if torch.get_default_device().type == "meta":
        with _WithoutDrawing():
            return _network(name, num_classes)
    return _network(name, num_classes)


def _network(name: str, num_classes: int) -> nn.Module:
    if name in RESNETS:
        return RESNETS[name](num_classes)
    if match := re.fullmatch(r"wrn-([0-9]+)-([0-9]+)(-swish)?", name):
        depth, widen_factor = (int(part) if len(part) <= 4 else MOST_DEPTH + 1 for part in match.groups()[:2])
        if 10 <= depth <= MOST_DEPTH and depth % 6 == 4 and 1 <= widen_factor <= MOST_WIDTH:
            return (SwishWideResNet if match[3] else WideResNet)(depth, widen_factor, num_classes)
        raise UserError(
            f"model {name[:40]!r}: a WideResNet's depth is 10, 16, 22, 28, 34, ... (6n+4) and its width at least 1, "
            f"at most {MOST_DEPTH} and {MOST_WIDTH}"
        )
    raise UserError(
        f"unknown model {name[:40]!r}: choose wrn-DEPTH-WIDTH (such as wrn-34-10), {', '.join(RESNETS)}, or a network "
        "of yours, FILE.py:NAME"
    )


def check_images(name: str, num_classes: int, batch: int, height: int, width: int, attacked: bool = True) -> None:
    """Make sure that a network can be trained on such batches, without taking memory or random numbers.

    Args:
        attacked: whether a user's network must have a gradient with respect to the images.

    Raises:
        UserError: the images are too small: BatchNorm would see a single value, or a feature map would be empty; or a
            user's network raises an error, or returns no logits (B, num_classes).
    """
    if is_custom(name):
        with torch.random.fork_rng([]):
            model = create_custom(name, num_classes).train()
            check_outputs(name, model, torch.rand(min(batch, 2), 3, height, width), num_classes, attacked)
        return
    with torch.device("meta"):
        model = create_model(name, num_classes).train()
        images = torch.empty(batch, 3, height, width)
    try:
        if not images.numel():
            raise ValueError("empty images")  # torch 2.4 accepts them
        model(images)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{name} cannot be trained on batches of {batch} images of {height}x{width} pixels: use larger images, or "
            f"another --batch-size where the last batch has a single image"
        ) from error


from models.checkpoint import load  # noqa: E402 (it needs create_model)
