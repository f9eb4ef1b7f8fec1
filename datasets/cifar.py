"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from one npz file or through torchvision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datasets import MOST_CLASSES, Dataset
from datasets.npz import check_members
from utils.errors import UserError
from utils.files import in_turn

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
KEYS = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL_KEYS = ("class_names", "flip", "padding")
MOST_PADDING = 64


def load_npz(name: str, path: Path) -> Dataset:
    """Read ``NAME.npz``: keys x_train, y_train, x_test, y_test; images NHWC uint8.

    The keys class_names, flip and padding are optional; see ``Dataset``. Without class_names the classes are named
    after their labels, 0 to the largest one.

    Raises:
        UserError: unreadable, a key is missing, or the content does not fit the name.
    """
    try:
        if not path.is_file():
            raise ValueError("it is no regular file")
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file.files]
            if missing:
                raise UserError(f"{path} lacks the keys {', '.join(missing)}: it must hold {', '.join(KEYS)}")
            keys = (*KEYS, *(key for key in OPTIONAL_KEYS if key in file.files))
            check_members(file.zip, keys)
            arrays = {key: file[key] for key in keys}
        # numpy hands back the bytes of a member that it cannot read.
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a key holds no array")
    except UserError:
        raise
    except Exception as error:  # a damaged file makes zipfile, zlib, tokenize and numpy raise nearly anything
        raise UserError(f"{path} is not a readable npz file ({error}): write or copy it again") from error
    names = arrays.pop("class_names", None)
    if names is None:
        names = _names_of_labels(path, np.concatenate([arrays["y_train"].ravel(), arrays["y_test"].ravel()]))
    if names.ndim != 1 or names.dtype.kind != "U" or len(names) > MOST_CLASSES:
        raise UserError(
            f"{path}: class_names is {names.dtype} {names.shape}, it must be text, one name a class and at most "
            f"{MOST_CLASSES}: numpy.array(names, dtype=str)"
        )
    class_names = tuple(map(str, names))
    if name in NUM_CLASSES and len(class_names) != NUM_CLASSES[name]:
        raise UserError(f"{path} names {len(class_names)} classes, {name} has {NUM_CLASSES[name]}")
    flip, padding = (arrays.pop(key, np.array(default)) for key, default in (("flip", True), ("padding", 4)))
    if flip.shape or flip.dtype != bool:
        raise UserError(f"{path}: flip is {flip.dtype} {flip.shape}, it must be True or False")
    if padding.shape or padding.dtype.kind not in "iu" or not 0 <= padding <= MOST_PADDING:
        raise UserError(f"{path}: padding must be a whole number of pixels, from 0 to {MOST_PADDING}")
    return Dataset(name=name, class_names=class_names, flip=bool(flip), padding=int(padding), **arrays)


def _names_of_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    """Raises: UserError: the labels are no integers that start at 0."""
    if not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0:
        raise UserError(f"{path}: labels are {labels.dtype}, they must be integers, at least one")
    low, high = int(labels.min()), int(labels.max())
    if low != 0 or high >= MOST_CLASSES:
        raise UserError(
            f"{path}: labels run from {low} to {high} and there are no class_names: labels start at 0, "
            f"and there are at most {MOST_CLASSES} classes"
        )
    return np.arange(high + 1).astype(str)


def _read_or_download(source: Callable[..., Any], folder: Path) -> list[Any]:
    """The training and the test split; of several processes one downloads them."""
    splits = (True, False)
    try:
        return [source(str(folder), train=split) for split in splits]
    except RuntimeError:  # missing or incomplete
        folder.mkdir(parents=True, exist_ok=True)
        with in_turn(folder / "download.lock"):
            return [source(str(folder), train=split, download=True) for split in splits]


def download(name: str, data_dir: Path) -> Dataset:
    """torchvision's copy in ``data_dir``, downloaded if missing; its checksums are verified.

    Raises:
        UserError: nothing there and no network, or a damaged download.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        train, test = _read_or_download(source, data_dir)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not in {data_dir} and could not be downloaded ({error}): put {name}.npz "
            f"(keys {', '.join(KEYS)}, class_names) into {data_dir}, or try --dataset digits, which needs no download"
        ) from error
    return Dataset(
        name=name,
        x_train=train.data,
        y_train=np.asarray(train.targets, dtype=np.int64),
        x_test=test.data,
        y_test=np.asarray(test.targets, dtype=np.int64),
        class_names=tuple(train.classes),
    )
