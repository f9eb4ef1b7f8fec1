"""Batches made on the device: the whole training set is kept there as uint8 and is cropped and flipped in batches."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.augment import Augmentation, augment
from datasets.extra import ExtraData
from utils.errors import UserError


def hold_out(n: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training images that are kept and of ``size`` random ones that are held out, each sorted.

    Raises:
        UserError: nothing would be kept.
    """
    if size >= n:
        raise UserError(f"--val-size {size} leaves nothing of {n} training images: hold out fewer")
    order = np.random.default_rng(seed).permutation(n)
    return np.sort(order[size:]), np.sort(order[:size])


def to_device(images: np.ndarray, labels: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """(N, H, W, 3) uint8 and (N,) labels -> (N, 3, H, W) uint8 and (N,) int64 on the device."""
    x = torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).contiguous()
    return x, torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(device)


def to_float(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], as torchvision's ToTensor does."""
    return images.float() / 255


def random_crop(images: Tensor, top: Tensor, left: Tensor, padding: int, mode: str = "zero") -> Tensor:
    """Crop each image from its padded self.

    Args:
        images: (B, C, H, W).
        top, left: (B,) int64 in [0, 2 * padding].
        mode: ``zero`` or ``reflect``.
    """
    _, _, height, width = images.shape
    if mode == "reflect":
        padded = F.pad(images.float(), (padding,) * 4, mode="reflect").to(images.dtype)
    else:
        padded = F.pad(images, (padding,) * 4)
    rows = top[:, None] + torch.arange(height, device=images.device)
    cols = left[:, None] + torch.arange(width, device=images.device)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    # The indexed dimensions come first: (B, H, W, C), which is channels_last in memory.
    return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)


def random_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror left-right the images (B, C, H, W) where flip (B,) is true."""
    return torch.where(flip[:, None, None, None], images.flip(3), images)


class Loader:
    """Shuffled, augmented training batches; everything random depends only on (seed, epoch), not on the device.

    With extra data an epoch is as long as without: it has as many images as the real set, of which the fraction are
    extra ones, drawn with replacement, and the rest a random part of the real set without repetition.

    Args:
        images: (N, 3, H, W) uint8, on the device.
        labels: (N,) int64, on the device.
        batch_size: at least 1; the last batch of an epoch may be smaller.
        seed: of the order, crops and flips.
        padding: before the random crop, in pixels; 0 for no crop.
        padding_mode: ``zero`` or ``reflect``.
        flip: whether to mirror half of the images.
        augmentation: of the cropped and flipped uint8 images; see ``create_augmentation``.
        views: 1 augments the only view; with more, the first is without the augmentation, and each of the others has
            it and is cropped and flipped anew.
        extra: images that make up a part of every batch.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        padding: int = 4,
        flip: bool = True,
        augmentation: Augmentation | None = None,
        views: int = 1,
        extra: ExtraData | None = None,
        padding_mode: str = "zero",
    ):
        self.images, self.labels = images, labels
        self.batch_size, self.seed, self.padding, self.flip = batch_size, seed, padding, flip
        self.views = (None, *[augmentation] * (views - 1)) if views > 1 else (augmentation,)
        self.extra, self.padding_mode = extra, padding_mode

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield x (B, 3, H, W) float32 in [0, 1], with more views the augmented x, and y (B,), of one epoch, from its
        batch ``first_step`` on."""
        generator = torch.Generator().manual_seed(self._seed(epoch))
        n, device = len(self.images), self.images.device
        order = torch.randperm(n, generator=generator).to(device)
        crops_and_flips = []
        for _ in self.views:
            shifts = torch.randint(0, 2 * self.padding + 1, (2, n), generator=generator).to(device)
            crops_and_flips.append((shifts, (torch.rand(n, generator=generator) < 0.5).to(device)))
        extra_indices = torch.randint(len(self.extra.labels), (n,), generator=generator) if self.extra else None
        for step in range(first_step, len(self)):
            at = slice(step * self.batch_size, (step + 1) * self.batch_size)
            images, y = self._fetch(order[at], extra_indices[at] if self.extra else None)
            views = []
            for i, (augmentation, (shifts, flips)) in enumerate(zip(self.views, crops_and_flips, strict=True)):
                x = images
                if self.padding:
                    x = random_crop(x, shifts[0, at], shifts[1, at], self.padding, self.padding_mode)
                if self.flip:
                    x = random_flip(x, flips[at])
                if augmentation is not None:
                    x = augment(x, augmentation, self._seed(epoch, step, max(i, 1)))
                views.append(to_float(x))
            yield *views, y

    def _seed(self, *parts: int) -> int:
        return int(np.random.SeedSequence((self.seed, *parts)).generate_state(1)[0])

    def _fetch(self, indices: Tensor, extra_indices: Tensor | None) -> tuple[Tensor, Tensor]:
        """Images and labels of one batch: those of the indices (B,), the last of them replaced by extra ones."""
        if extra_indices is None:
            return self.images[indices], self.labels[indices]
        kept = len(indices) - self.extra.count(len(indices))
        chosen = extra_indices[kept:].numpy()
        x, y = to_device(self.extra.images[chosen], self.extra.labels[chosen], self.images.device)
        return torch.cat([self.images[indices[:kept]], x]), torch.cat([self.labels[indices[:kept]], y])
