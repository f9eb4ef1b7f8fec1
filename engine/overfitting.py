"""The test for catastrophic overfitting of Fast AT (Wong, Rice and Kolter, ICLR 2020): robust accuracy on training
images that falls to nothing within an epoch."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attacks.pgd import AttackSpec, cross_entropy_per_image, frozen, perturb
from models.accelerate import AcceleratedModel

FALL = 0.2  # of the accuracy from one epoch to the next


def training_accuracy(
    student: AcceleratedModel,
    x: Tensor,
    y: Tensor,
    spec: AttackSpec,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    step_size: float = 0.0,
) -> float:
    """Accuracy in [0, 1] on images under PGD-5, as the published program measures it.

    The network is in train mode, also in the attack: each of up to 7 passes moves the BatchNorm statistics. Only images
    that are classified correctly move. The pass on x' between attack and verdict is the program's choice of a restart.

    Args:
        x: (B, 3, H, W) in [0, 1]; y: (B,).
        spec: epsilon, norm and start are used.
        start: a given start in place of a drawn one.
        step_size: 0 is epsilon / 4, which at the published 8/255 is the published 2/255.
    """
    spec = replace(spec, step_size=step_size or spec.epsilon / 4, num_steps=5)
    with frozen(student.model, "train"):
        x_adv = perturb(
            student.train_logits,
            x,
            y,
            cross_entropy_per_image,
            spec,
            generator,
            start,
            uses_clean=False,
            moves=lambda logits, labels, wrong: logits.argmax(1) == labels,
        )
        with torch.no_grad():
            student.train_logits(x_adv)
            return (student.train_logits(x_adv).argmax(1) == y).double().mean().item()


def catastrophic(accuracies: Sequence[float]) -> bool:
    """Whether the last epoch's accuracy is more than 0.2 below that of the epoch before."""
    return len(accuracies) > 1 and accuracies[-1] < accuracies[-2] - FALL


def overfitting_sentence(accuracies: Sequence[float], epoch: int) -> str:
    before, now = (100 * accuracy for accuracy in accuracies[-2:])
    return (
        f"catastrophic overfitting in epoch {epoch}: PGD-5 accuracy on training images fell from {before:.1f}% to "
        f"{now:.1f}%; stopped (--stop-overfitting); student-epoch{epoch - 1:03d}.pt is from before it, last.pt not"
    )
