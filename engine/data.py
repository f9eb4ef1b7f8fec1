"""What a run trains on and is evaluated on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from datasets import load_dataset
from datasets.augment import create_augmentation
from datasets.extra import load_extra
from datasets.loader import Loader, hold_out, to_device
from engine.config import TrainConfig
from losses import find_method
from models import check_images
from utils.options import require


@dataclass(frozen=True)
class TrainingData:
    """Attributes:
    loader: the training batches.
    x_eval: (N, 3, H, W) uint8; y_eval: (N,): the images that every epoch is evaluated on.
    eval_split: ``validation`` or ``test``.
    fingerprint: of the data set; see ``Dataset.fingerprint``.
    notice: see ``Dataset.order_notice``.
    """

    loader: Loader
    x_eval: Tensor
    y_eval: Tensor
    eval_split: str
    num_classes: int
    fingerprint: str
    notice: str


def load_training_data(config: TrainConfig, device: torch.device) -> TrainingData:
    """Training batches and evaluation images as the config says, on the device.

    Raises:
        UserError: unknown or unreadable data, or no training images left.
    """
    dataset = load_dataset(config.dataset, config.data_dir)
    augmentation = create_augmentation(config.augment)
    fingerprint, extra = dataset.fingerprint(), None
    if config.extra_data:
        shape = dataset.x_train.shape[1:]
        extra = load_extra(config.extra_data, config.extra_fraction, shape, dataset.num_classes)
        fingerprint += f"+{extra.fingerprint}"
        none = extra.count(config.batch_size) == 0
        require(not none, f"--extra-fraction {config.extra_fraction} of {config.batch_size} images is none: raise it")
    kept, held_out = hold_out(len(dataset.x_train), config.val_size, config.seed)
    kept = kept[: config.limit_train or None]
    size = min(dataset.x_train.shape[1:3])
    require(
        config.crop_padding == "zero" or dataset.padding < size,
        f"--crop-padding {config.crop_padding} needs images larger than their padding of {dataset.padding} pixels",
    )
    loader = Loader(
        *to_device(dataset.x_train[kept], dataset.y_train[kept], device),
        batch_size=config.batch_size,
        seed=config.seed,
        padding=dataset.padding,
        flip=dataset.flip,
        augmentation=augmentation,
        views=max(find_method(config.method).views, 1 + (config.augment_view_weight > 0)),
        padding_mode=config.crop_padding,
        extra=extra,
    )
    if config.val_size:
        split, x, y = "validation", dataset.x_train[held_out], dataset.y_train[held_out]
    else:
        split, x, y = "test", dataset.x_test, dataset.y_test
    evaluated = to_device(x, y, device)
    cut = {"train": config.limit_train, "test": not config.val_size}
    notice = dataset.order_notice(*(name for name in cut if cut[name]))
    return TrainingData(loader, *evaluated, split, dataset.num_classes, fingerprint, notice)


def check_batches(loader: Loader, num_classes: int, student: str, guide: str | None, parts: int = 1) -> None:
    """Check that the networks can train on the smallest batch, which comes last in an epoch.

    Args:
        parts: into which each batch is divided, with BatchNorm statistics of their own.

    Raises:
        UserError: the images are too small.
    """
    n, size = len(loader.images), loader.batch_size
    smallest = max(1, (n % size or min(size, n)) // parts)
    check_images(student, num_classes, smallest, *loader.images.shape[2:])
    if guide:
        check_images(guide, num_classes, smallest, *loader.images.shape[2:], attacked=False)
