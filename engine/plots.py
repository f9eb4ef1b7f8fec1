"""Pictures of a run; matplotlib is needed here alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot_curves(metrics: list[dict[str, Any]], path: Path) -> None:
    """Losses, accuracies and learning rate against epochs, from the lines of metrics.jsonl."""
    epochs = [m["epoch"] for m in metrics]
    figure, (losses, accuracies, rates) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")

    losses.plot(epochs, [m["loss"] for m in metrics], "k.-", label="sum")
    for term in metrics[0]["terms"]:
        losses.plot(epochs, [m["terms"][term] for m in metrics], ".-", label=term)
    losses.set(title="training loss", yscale="log")

    split = metrics[0]["split"]
    series = {
        "student_clean": "student, clean",
        "student_robust": "student, PGD-20",
        "average_clean": "average, clean",
        "average_robust": "average, PGD-20",
        "guide_clean": "guide, clean",
    }
    for key, label in series.items():
        if key in metrics[0]:
            accuracies.plot(epochs, [m[key] for m in metrics], ".-", label=f"{label}: {metrics[-1][key]:.1f}%")
    accuracies.set(title=f"accuracy on the {split} images, %", ylim=(0, 100))

    rates.plot(epochs, [m["lr"] for m in metrics], ".-", drawstyle="steps-mid")
    rates.set(title="learning rate", yscale="log")

    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    losses.legend(fontsize="small")
    accuracies.legend(fontsize="small", loc="best")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_triples(
    x: np.ndarray,
    x_adv: np.ndarray,
    labels: Sequence[str],
    taken_for: Sequence[str],
    broken_by: Sequence[str],
    file: Path | BinaryIO,
) -> None:
    """A row for each image: clean, adversarial, and their difference, magnified around grey.

    Args:
        x, x_adv: (K, 3, H, W) in [0, 1], K at least 1.
        labels, taken_for, broken_by: K class names, what x_adv is taken for, and the attack that found it.
        file: where the PNG goes.
    """
    difference = x_adv - x
    magnified = 0.5 / max(float(abs(difference).max()), 1e-12)
    columns = ("clean", "adversarial", f"difference, magnified {magnified:.3g} times")
    figure, grid = plt.subplots(len(x), 3, figsize=(7.5, 2.6 * len(x) + 0.3), layout="constrained", squeeze=False)
    for i, row in enumerate(grid):
        captions = (f"label: {labels[i]}", f"taken for {taken_for[i]}", f"found by {broken_by[i]}")
        for axes, image, caption in zip(row, (x[i], x_adv[i], 0.5 + magnified * difference[i]), captions, strict=True):
            axes.imshow(image.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(caption)
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize="medium")
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
