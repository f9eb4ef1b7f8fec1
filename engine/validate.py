"""Accuracy on clean images and under PGD-20, as training reports them after every epoch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attacks.pgd import cross_entropy_per_image, frozen, perturb, pgd20, starting_point
from datasets.loader import to_float
from engine.config import TrainConfig
from models.accelerate import AcceleratedModel
from utils.distributed import ProcessGroup

LARGE_BATCH = 250


ALONE = ProcessGroup()


def clean_accuracy(
    network: AcceleratedModel,
    images: Tensor,
    labels: Tensor,
    on_batch: Callable[[], None] = lambda: None,
    group: ProcessGroup = ALONE,
) -> float:
    """Percentage of images (N, 3, H, W) uint8 that the network, in eval mode, classifies correctly; each process of the
    group looks at its rows of every batch."""
    correct = torch.zeros((), dtype=torch.int64)
    # A compiled forward would be compiled once more for tensors of the inference mode.
    with frozen(network.model), torch.inference_mode(not network.acceleration.compile_batch_size), torch.no_grad():
        network.refresh()
        for x, y in _batches(network, images, labels, group):
            rows = group.rows(len(y))
            correct += (network.attack_logits(x[rows]).argmax(1) == y[rows]).sum().item()
            on_batch()
    group.all_reduce_(correct)
    return 100 * correct.item() / len(images)


def pgd_accuracy(
    network: AcceleratedModel,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    norm: str = "linf",
    on_batch: Callable[[], None] = lambda: None,
    group: ProcessGroup = ALONE,
) -> float:
    """Percentage of images still classified correctly under PGD-20 on the cross-entropy; see ``pgd20``.

    The starts are drawn for whole batches: they do not depend on the number of processes.

    Args:
        images: (N, 3, H, W) uint8; labels: (N,).
        epsilon: radius in [0, 1].
    """
    spec = pgd20(epsilon, norm)
    generator = torch.Generator(images.device).manual_seed(0)
    correct = torch.zeros((), dtype=torch.int64)
    with frozen(network.model):
        network.refresh()
        for x, y in _batches(network, images, labels, group):
            start, rows = starting_point(x, spec, generator), group.rows(len(y))
            x, y, start = x[rows], y[rows], start[rows]
            x_adv = perturb(network.attack_logits, x, y, cross_entropy_per_image, spec, start=start, uses_clean=False)
            with torch.no_grad():
                correct += (network.attack_logits(x_adv).argmax(1) == y).sum().item()
            on_batch()
    group.all_reduce_(correct)
    return 100 * correct.item() / len(images)


def _batches(
    network: AcceleratedModel, images: Tensor, labels: Tensor, group: ProcessGroup
) -> Iterator[tuple[Tensor, Tensor]]:
    """Float batches of the size that is fastest: what the processes have compiled, or just large."""
    compiled = torch.tensor(network.acceleration.compile_batch_size)
    group.all_reduce_(compiled)
    size = compiled.item() or LARGE_BATCH
    for x, y in zip(images.split(size), labels.split(size), strict=True):
        yield network.in_memory_order(to_float(x)), y


def evaluate(
    student: AcceleratedModel,
    guide: AcceleratedModel | None,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    average: AcceleratedModel | None = None,
    on_batch: Callable[[], None] = lambda: None,
    group: ProcessGroup = ALONE,
) -> dict[str, float]:
    """What an epoch reports, accuracies in percent: clean on all images (N, 3, H, W) uint8, PGD-20 on the first
    ``config.eval_size`` of them; of the student, the guide (clean only) and the average of the student's weights."""
    n = min(config.eval_size, len(images))
    results = {}
    for name, network in (("student", student), ("average", average)):
        if network is None:
            continue
        results[f"{name}_clean"] = clean_accuracy(network, images, labels, on_batch, group)
        results[f"{name}_robust"] = pgd_accuracy(
            network, images[:n], labels[:n], config.epsilon, config.norm, on_batch=on_batch, group=group
        )
    results["robust_images"] = n
    if guide is not None:
        results["guide_clean"] = clean_accuracy(guide, images, labels, on_batch, group)
    return results
