"""Augmentation beyond crop and flip, on uint8 batches: torchvision's policies, and Cutout."""

from collections.abc import Callable

import torch
from torch import Tensor

from utils.errors import UserError

Augmentation = Callable[[Tensor], Tensor]

DEFAULT_POLICY = "cifar10"  # of AutoAugment


def cutout(images: Tensor) -> Tensor:
    """Blacken one square of each image, half as wide as the image and centred on any of its pixels, so that it may
    reach over the border (DeVries & Taylor 2017: 16 of CIFAR-10's 32 pixels)."""
    height, width = images.shape[2:]
    side = min(height, width) // 2
    rows, cols = (torch.arange(n, device=images.device) for n in (height, width))
    top = torch.randint(height, (len(images), 1)).to(images.device) - side // 2
    left = torch.randint(width, (len(images), 1)).to(images.device) - side // 2
    in_rows = (rows >= top) & (rows < top + side)
    in_cols = (cols >= left) & (cols < left + side)
    return images.masked_fill((in_rows[:, :, None] & in_cols[:, None, :])[:, None], 0)


def each(transform: Augmentation) -> Augmentation:
    """A transform of one image, drawn anew for every image of a batch."""
    return lambda images: torch.stack([transform(image) for image in images])


def create_augmentation(name: str) -> Augmentation | None:
    """An augmentation of uint8 batches (B, 3, H, W), which draws from torch's global generator.

    Args:
        name: ``none`` (returns None), ``cutout``, ``rotation`` (by up to 15 degrees), ``randaugment`` (Cubuk et al.
            2020), or ``autoaugment-POLICY`` (Cubuk et al. 2019) with a policy that torchvision knows;
            ``autoaugment`` alone is that of CIFAR-10. The settings are torchvision's defaults.

    Raises:
        UserError: unknown name or policy, or no torchvision.
    """
    if name == "none":
        return None
    if name == "cutout":
        return cutout
    kind, dash, policy = name.partition("-")
    if kind != "autoaugment" and name not in ("randaugment", "rotation"):
        raise UserError(
            f"--augment {name}: choose none, cutout, rotation, randaugment, autoaugment or autoaugment-POLICY"
        )
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise UserError(f"--augment {name} needs torchvision: pip install torchvision") from error
    if name == "rotation":
        return each(v2.RandomRotation(15))
    if name == "randaugment":
        return each(v2.RandAugment())
    policies = {known.value: known for known in v2.AutoAugmentPolicy}
    if dash and policy not in policies:
        raise UserError(f"--augment {name}: torchvision's policies are {', '.join(sorted(policies))}")
    return each(v2.AutoAugment(policies[policy or DEFAULT_POLICY]))


def augment(images: Tensor, augmentation: Augmentation, seed: int) -> Tensor:
    """Augment uint8 images (B, 3, H, W); what is drawn depends only on the seed, and the global generator keeps its
    state. The draws are made on the CPU, so they are the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
        return augmentation(images)
