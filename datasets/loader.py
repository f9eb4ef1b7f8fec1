"""Batches made on the device: the whole training set lies there as uint8 and is cropped and flipped in batches."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import UserError


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


def random_crop(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Crop each image from its zero-padded self.

    Args:
        images: (B, C, H, W).
        top, left: (B,) int64 in [0, 2 * padding].
    """
    _, _, height, width = images.shape
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
    """Shuffled, augmented training batches; order, crops and flips depend on (seed, epoch) alone, not on the device.

    Args:
        images: (N, 3, H, W) uint8, on the device.
        labels: (N,) int64, on the device.
        batch_size: at least 1; the last batch of an epoch may be smaller.
        seed: of the order, crops and flips.
        padding: zero padding before the random crop, in pixels; 0 for no crop.
        flip: whether to mirror half of the images.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, seed: int, padding: int = 4, flip: bool = True):
        self.images, self.labels = images, labels
        self.batch_size, self.seed, self.padding, self.flip = batch_size, seed, padding, flip

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield x (B, 3, H, W) float32 in [0, 1] and y (B,) of one epoch, from its batch ``first_step`` on."""
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]))
        n, device = len(self.images), self.images.device
        order = torch.randperm(n, generator=generator).to(device)
        shifts = torch.randint(0, 2 * self.padding + 1, (2, n), generator=generator).to(device)
        flips = (torch.rand(n, generator=generator) < 0.5).to(device)
        for step in range(first_step, len(self)):
            at = slice(step * self.batch_size, (step + 1) * self.batch_size)
            x = self.images[order[at]]
            if self.padding:
                x = random_crop(x, shifts[0, at], shifts[1, at], self.padding)
            if self.flip:
                x = random_flip(x, flips[at])
            yield to_float(x), self.labels[order[at]]
