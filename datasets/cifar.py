"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from one npz file or through torchvision."""

import zipfile
from pathlib import Path

import numpy as np

from datasets import Dataset
from engine.errors import UserError

NUM_CLASSES = {"cifar10": 10, "cifar100": 100}
KEYS = ("x_train", "y_train", "x_test", "y_test", "class_names")


def load_npz(name: str, path: Path) -> Dataset:
    """Read ``NAME.npz``: keys x_train, y_train, x_test, y_test, class_names; images NHWC uint8.

    Raises:
        UserError: unreadable, a key is missing, or the content does not fit the name.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file.files]
            if missing:
                raise UserError(f"{path} lacks the keys {', '.join(missing)}: it must hold {', '.join(KEYS)}")
            arrays = {key: file[key] for key in KEYS}
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, AttributeError) as error:
        raise UserError(f"{path} is not a readable npz file ({error}): write or copy it again") from error
    class_names = tuple(map(str, arrays.pop("class_names")))
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
