"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from one npz file or through torchvision."""

from pathlib import Path

import numpy as np

from datasets import Dataset
from datasets.npz import check_members
from utils.errors import UserError

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
KEYS = ("x_train", "y_train", "x_test", "y_test", "class_names")


def load_npz(name: str, path: Path) -> Dataset:
    """Read ``NAME.npz``: keys x_train, y_train, x_test, y_test, class_names; images NHWC uint8.

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
            check_members(file.zip, KEYS)
            arrays = {key: file[key] for key in KEYS}
        # numpy hands back the bytes of a member that it cannot read.
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a key holds no array")
    except UserError:
        raise
    except Exception as error:  # a damaged file makes zipfile, zlib, tokenize and numpy raise nearly anything
        raise UserError(f"{path} is not a readable npz file ({error}): write or copy it again") from error
    names = arrays.pop("class_names")
    if names.ndim != 1:
        raise UserError(f"{path}: class_names has the shape {names.shape}, it must be a list of names")
    class_names = tuple(map(str, names))
    if name in NUM_CLASSES and len(class_names) != NUM_CLASSES[name]:
        raise UserError(f"{path} names {len(class_names)} classes, {name} has {NUM_CLASSES[name]}")
    return Dataset(name=name, class_names=class_names, **arrays)


def download(name: str, data_dir: Path) -> Dataset:
    """torchvision's copy in ``data_dir``, downloaded if missing; its checksums are verified.

    Raises:
        UserError: nothing there and no network, or a damaged download.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    source = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        train, test = (source(str(data_dir), train=split, download=True) for split in (True, False))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not in {data_dir} and could not be downloaded ({error}): put {name}.npz "
            f"(keys {', '.join(KEYS)}) into {data_dir}, or try --dataset digits, which needs no download"
        ) from error
    return Dataset(
        name=name,
        x_train=train.data,
        y_train=np.asarray(train.targets, dtype=np.int64),
        x_test=test.data,
        y_test=np.asarray(test.targets, dtype=np.int64),
        class_names=tuple(train.classes),
    )
