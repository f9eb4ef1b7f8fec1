"""Training curves of a run: curves.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from engine.log_lines import terms_of

SERIES = {
    "student_clean": "student, clean",
    "student_robust": "student, PGD-20",
    "average_clean": "average, clean",
    "average_robust": "average, PGD-20",
    "guide_clean": "guide, clean",
}


@matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a $
def plot_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw losses, accuracies and learning rate against epochs, from the entries of metrics.jsonl, at least one."""
    epochs = [m["epoch"] for m in metrics]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    losses, accuracies, rates = figure.subplots(1, 3)

    losses.plot(epochs, [m["loss"] for m in metrics], "k.-", label="sum")
    for term in dict.fromkeys(name for m in metrics for name in terms_of(m)):
        losses.plot(epochs, [terms_of(m).get(term, float("nan")) for m in metrics], ".-", label=term)
    shown = [value for m in metrics for value in (m["loss"], *terms_of(m).values())]
    losses.set(title="training loss", yscale="log" if min(shown) > 0 else "linear")

    highest = 0.0
    for key, label in SERIES.items():
        values = [m.get(key, float("nan")) for m in metrics]
        if key in metrics[-1]:
            accuracies.plot(epochs, values, ".-", label=f"{label}: {values[-1]:.1f}%")
            highest = max(highest, *(value for value in values if value == value))
    accuracies.set(title=f"accuracy on the {metrics[0]['split']} images, %", ylim=(0, min(100, 1.15 * highest + 1)))

    lr = [m["lr"] for m in metrics]
    rates.plot(epochs, lr, ".-", drawstyle="steps-mid")
    rates.set(title="learning rate", yscale="log" if max(lr) > 20 * min(lr) > 0 else "linear")

    for axes in (losses, accuracies, rates):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    for axes in (losses, rates):
        if axes.get_yscale() == "log":
            axes.yaxis.set_minor_formatter("{x:g}" if axes.get_ylim()[1] < 10 * axes.get_ylim()[0] else "")
        axes.yaxis.set_major_formatter("{x:g}")
    losses.legend(fontsize="small")
    accuracies.legend(fontsize="small", loc="best")
    figure.savefig(path, dpi=110)
