"""Accuracy on clean images and under PGD-20, as training reports them after every epoch."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attacks.pgd import cross_entropy_per_image, frozen, perturb, pgd20
from datasets.loader import to_float
from engine.config import TrainConfig
from models.accelerate import AcceleratedModel

LARGE_BATCH = 250


def clean_accuracy(
    network: AcceleratedModel, images: Tensor, labels: Tensor, on_batch: Callable[[], None] = lambda: None
) -> float:
    """Percentage of images (N, 3, H, W) uint8 that the network, in eval mode, classifies correctly."""
    correct = 0
    with frozen(network.model), torch.inference_mode(not network.acceleration.compile_batch_size), torch.no_grad():
        network.refresh()
        for x, y in _batches(network, images, labels):
            correct += (network.attack_logits(x).argmax(1) == y).sum().item()
            on_batch()
    return 100 * correct / len(images)


def pgd_accuracy(
    network: AcceleratedModel,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    norm: str = "linf",
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Percentage of images still classified correctly under PGD-20 on the cross-entropy; see ``pgd20``.

    Args:
        images: (N, 3, H, W) uint8; labels: (N,).
        epsilon: radius in [0, 1].
        seed: of the random starts.
    """
    spec = pgd20(epsilon, norm)
    generator = torch.Generator(images.device).manual_seed(seed)
    correct = 0
    with frozen(network.model):
        network.refresh()
        for x, y in _batches(network, images, labels):
            x_adv = perturb(network.attack_logits, x, y, cross_entropy_per_image, spec, generator, uses_clean=False)
            with torch.no_grad():
                correct += (network.attack_logits(x_adv).argmax(1) == y).sum().item()
            on_batch()
    return 100 * correct / len(images)


def _batches(network: AcceleratedModel, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Float batches of the size that is fastest: what was compiled, or just large."""
    size = network.acceleration.compile_batch_size or LARGE_BATCH
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
) -> dict[str, float]:
    """What an epoch reports, accuracies in percent: clean on all images (N, 3, H, W) uint8, PGD-20 on the first
    ``config.eval_size`` of them; of the student, the guide (clean only) and the average of the student's weights."""
    n = min(config.eval_size, len(images))
    results = {}
    for name, network in (("student", student), ("average", average)):
        if network is None:
            continue
        results[f"{name}_clean"] = clean_accuracy(network, images, labels, on_batch)
        results[f"{name}_robust"] = pgd_accuracy(
            network, images[:n], labels[:n], config.epsilon, config.norm, on_batch=on_batch
        )
    results["robust_images"] = n
    if guide is not None:
        results["guide_clean"] = clean_accuracy(guide, images, labels, on_batch)
    return results
