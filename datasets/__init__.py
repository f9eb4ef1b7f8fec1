"""Data sets by name, as uint8 arrays in memory."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

MOST_CLASSES = 100_000
MANY = 20  # labels in ascending order are no accident


@dataclass(frozen=True)
class Dataset:
    """Images and labels of one data set.

    Attributes:
        x_train, x_test: (N, H, W, 3) uint8.
        y_train, y_test: (N,) int64, each in [0, C).
        class_names: C names.
        padding: pixels of zero padding before the random crop.
        flip: whether a mirrored image is still of its class.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        for name in self.class_names:
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise UserError(f"data set {self.name!r}: the class name {name!r} is no text: rename it") from error
        for split in ("train", "test"):
            x, y = getattr(self, f"x_{split}"), getattr(self, f"y_{split}")
            where = f"data set {self.name!r}, {split} split"
            if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] != 3:
                grey = ": repeat a grey image's channel three times" if x.ndim == 3 or x.shape[3:] == (1,) else ""
                raise UserError(f"{where}: images are {x.dtype} {x.shape}, they must be uint8 (N, H, W, 3){grey}")
            if not np.issubdtype(y.dtype, np.integer) or y.ndim != 1:
                raise UserError(f"{where}: labels are {y.dtype} {y.shape}, they must be integers (N,)")
            if len(x) != len(y) or len(x) == 0:
                raise UserError(f"{where}: {len(x)} images but {len(y)} labels")
            if y.min() < 0 or y.max() >= self.num_classes:
                hint = ": subtract 1, labels start at 0" if (y.min(), y.max()) == (1, self.num_classes) else ""
                raise UserError(
                    f"{where}: labels run from {y.min()} to {y.max()}, outside the {self.num_classes} classes{hint}"
                )
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            raise UserError(f"data set {self.name!r}: train and test images differ in size")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def order_notice(self, *splits: str) -> str:
        """A sentence if one of these splits, ``train`` or ``test``, is sorted by class, else empty."""
        for split in splits:
            y = getattr(self, f"y_{split}")
            if self.num_classes > 1 and len(y) >= MANY and (y[1:] >= y[:-1]).all():
                return f"the {split} images are sorted by class, the first N are of few: shuffle them (docs/data.md)"
        return ""

    def test(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """The first n test images (n, 3, H, W), float32 in [0, 1], and their labels (n,) int64; all of them if n is
        None."""
        x = torch.from_numpy(self.x_test[:n]).permute(0, 3, 1, 2).float().div(255).contiguous()
        return x, torch.from_numpy(self.y_test[:n]).long()

    def fingerprint(self) -> str:
        """CRC-32 of all images, labels and what is done to them: another data set under the same name is noticed."""
        crc = 0
        for array in (self.x_train, self.y_train.astype(np.int64), self.x_test, self.y_test.astype(np.int64)):
            crc = zlib.crc32(np.ascontiguousarray(array), crc)
        if self.name != "digits" and (self.padding, self.flip) != (4, True):  # as a file may say
            crc = zlib.crc32(f"padding {self.padding}, flip {self.flip}".encode(), crc)
        return f"{crc:08x}"


def load_dataset(name: str, data_dir: str | Path = "data") -> Dataset:
    """Load a data set.

    Args:
        name: ``digits`` (from scikit-learn, nothing to download), ``cifar10`` or ``cifar100`` (``NAME.npz`` in
            ``data_dir`` if it is there, else torchvision's files, downloaded and checked when missing), or any other
            NAME for which ``data_dir/NAME.npz`` exists.
        data_dir: folder of the files.

    Raises:
        UserError: unknown name, no data and no network, a corrupt file, or labels outside the classes.
    """
    from datasets import cifar, digits

    npz = Path(data_dir) / f"{name}.npz"
    if name == "digits":
        return digits.load()
    if npz.exists():
        return cifar.load_npz(name, npz)
    if name in cifar.NUM_CLASSES:
        return cifar.download(name, Path(data_dir))
    raise UserError(f"unknown data set {name!r}: choose digits, cifar10 or cifar100, or put your own in {npz}")


def load_test(name: str, n: int | None = None, data_dir: str | Path = "data") -> tuple[Tensor, Tensor]:
    """The first n test images (n, 3, H, W), float32 in [0, 1], and their labels (n,) int64; all of them if n is None.

    Raises:
        UserError: as ``load_dataset``.
    """
    return load_dataset(name, data_dir).test(n)
