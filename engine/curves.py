"""Training curves of a run: curves.png."""

import matplotlib

matplotlib.use("Agg")
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

plt.rcParams["text.parse_math"] = False  # a $ in a name is a $


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
    for axes in (losses, rates):
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    losses.legend(fontsize="small")
    accuracies.legend(fontsize="small", loc="best")
    figure.savefig(path, dpi=110)
    plt.close(figure)
