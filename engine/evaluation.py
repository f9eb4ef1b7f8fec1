"""Accuracy on clean images and under PGD-20, as training reports them after every epoch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attacks.pgd import AttackSpec, frozen, perturb, starting_point
from datasets.loader import to_float
from engine.config import TrainConfig

PGD20 = {"step_size": 0.003, "num_steps": 20, "start": "uniform"}


def cross_entropy_per_image(adv_logits: Tensor, nat_logits: Tensor | None, y: Tensor) -> Tensor:
    return F.cross_entropy(adv_logits, y, reduction="none")


def clean_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Percentage of images (N, 3, H, W) uint8 that the model, in eval mode, labels right."""
    correct = 0
    with frozen(model), torch.inference_mode(), autocast():
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            correct += (model(to_float(x)).argmax(1) == y).sum().item()
            on_batch()
    return 100 * correct / len(images)


def pgd_accuracy(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    epsilon: float,
    norm: str = "linf",
    seed: int = 0,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_batch: Callable[[], None] = lambda: None,
) -> float:
    """Percentage of images still labelled right under PGD-20 on the cross-entropy (steps of 0.003, uniform start).

    Args:
        images: (N, 3, H, W) uint8; labels: (N,).
        epsilon: radius in [0, 1]. In l2 the step is epsilon / 10.
        seed: of the random starts.
    """
    spec = AttackSpec(epsilon=epsilon, norm=norm, **PGD20)
    if norm == "l2":
        spec = AttackSpec(epsilon=epsilon, norm=norm, **{**PGD20, "step_size": epsilon / 10})
    generator = torch.Generator(images.device).manual_seed(seed)

    def forward(x: Tensor) -> Tensor:
        with autocast():
            return model(x).float()

    correct = 0
    with frozen(model):
        for x, y in zip(images.split(batch_size), labels.split(batch_size), strict=True):
            x = to_float(x)
            start = starting_point(x, spec, generator)
            x_adv = perturb(forward, x, y, cross_entropy_per_image, spec, start, uses_clean=False)
            with torch.no_grad():
                correct += (forward(x_adv).argmax(1) == y).sum().item()
            on_batch()
    return 100 * correct / len(images)


def evaluate(
    student: nn.Module,
    guide: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    on_batch: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """What an epoch reports, accuracies in percent: clean on all images (N, 3, H, W) uint8, PGD-20 on the first
    ``config.eval_size`` of them."""
    batch_size, n = max(config.batch_size, 250), min(config.eval_size, len(images))
    common = {"autocast": autocast, "on_batch": on_batch}
    results = {
        "student_clean": clean_accuracy(student, images, labels, batch_size, **common),
        "student_robust": pgd_accuracy(
            student, images[:n], labels[:n], batch_size, config.epsilon, config.norm, **common
        ),
        "robust_images": n,
    }
    if guide is not None:
        results["guide_clean"] = clean_accuracy(guide, images, labels, batch_size, **common)
    return results
