"""Draw the pictures of evaluations, trainings and sweeps."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.statistics import accuracy_interval

plain_text = matplotlib.rc_context({"text.parse_math": False})  # a $ in a name is a $
CLEAN, ROBUST = "#a6c8e4", "#0b5394"
ERROR_BARS = {"ecolor": "#e07b00", "elinewidth": 1, "capsize": 2}


@plain_text
def plot_triples(
    x: np.ndarray,
    x_adv: np.ndarray,
    labels: Sequence[str],
    predicted: Sequence[str],
    broken_by: Sequence[str],
    file: Path | BinaryIO,
) -> None:
    """Draw a row for each image: clean, adversarial, and their difference, magnified around grey.

    Args:
        x, x_adv: (K, 3, H, W) in [0, 1], K at least 1.
        labels, predicted, broken_by: K class names of x and of x_adv, and the attack that found x_adv.
        file: where the PNG goes.
    """
    difference = x_adv - x
    magnified = 0.5 / max(float(abs(difference).max()), 1e-12)
    columns = ("clean", "adversarial", f"difference × {magnified:.3g}\n(gray: 0)")
    figure = Figure(figsize=(5.2, 1.87 * len(x) + 0.5), layout="constrained")
    grid = figure.subplots(len(x), 3, squeeze=False)
    for i, row in enumerate(grid):
        captions = (f"label: {labels[i]}", f"predicted: {predicted[i]}", f"found by {broken_by[i]}")
        for axes, image, caption in zip(row, (x[i], x_adv[i], 0.5 + magnified * difference[i]), captions, strict=True):
            axes.imshow(image.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(_shortened(caption, 26), fontsize="small")
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize="medium")
    _save(figure, file)


@plain_text
def plot_classes(classes: list[dict[str, Any]], file: Path | BinaryIO) -> None:
    """Draw clean and robust accuracy of each class as bars, in two columns if there are many.

    Args:
        classes: of ``per_class`` in autoattack.json those that have images, at least one, from the top down.
        file: where the PNG goes.
    """
    columns = 1 if len(classes) <= 25 else 2
    rows = -(-len(classes) // columns)
    size = (5.2 if columns == 1 else 8, 0.2 * rows + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)  # inches; the figures of one column must not touch the next one's names
    grid = figure.subplots(1, columns, squeeze=False)
    for column, axes in enumerate(grid[0]):
        part = classes[column * rows : (column + 1) * rows]
        for row, entry in enumerate(part):
            clean, robust = entry["clean_accuracy"], entry["robust_accuracy"]
            axes.barh(row, clean, color=CLEAN, label="clean" if row == 0 else None)
            axes.barh(row, robust, color=ROBUST, label="robust" if row == 0 else None)
            figures = f"{clean:.0f} / {robust:.0f}"
            axes.text(132, row, figures, ha="right", va="center", fontsize="small")
        axes.set_yticks(range(len(part)), [_shortened(entry["name"], 20) for entry in part], fontsize="small")
        axes.set(xlim=(0, 132), ylim=(rows - 0.4, -0.6), xticks=range(0, 101, 25), xlabel="accuracy, %")
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines["bottom"].set_bounds(0, 100)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small")
    _save(figure, file)


@plain_text
def plot_epsilons(curves: dict[str, tuple[list[dict[str, Any]], int]], norm: str, file: Path | BinaryIO) -> None:
    """Draw robust accuracy with its 95% interval against epsilon, from the clean accuracy at 0.

    Args:
        curves: by name, ``curve`` of autoattack.json and the number of images.
        norm: of epsilon; ``linf`` is drawn in 1/255.
        file: for the PNG.
    """
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    _epsilons(figure.subplots(), curves, norm)
    _save(figure, file)


@plain_text
def plot_comparison(reports: dict[str, dict[str, Any]], file: Path | BinaryIO) -> None:
    """Draw clean and robust accuracy of several networks as bars with 95% intervals and, where all have a curve, these
    over epsilon.

    Args:
        reports: the contents of autoattack.json by name, at least one.
        file: for the PNG.
    """
    norms = {report["norm"] for report in reports.values()}
    curves = {name: (report["curve"], report["n"]) for name, report in reports.items() if "curve" in report}
    heights = [0.6 * len(reports) + 0.6]
    if len(curves) == len(reports) and len(norms) == 1:
        heights.append(3.4 + 0.2 * len(reports))
    figure = Figure(figsize=(6.4, sum(heights)), layout="constrained")
    grid = figure.subplots(len(heights), 1, height_ratios=heights, squeeze=False)
    bars = grid[0, 0]
    for row, report in enumerate(reports.values()):
        for shift, key, color in ((-0.2, "clean", CLEAN), (0.2, "robust", ROBUST)):
            accuracy, label = report[f"{key}_accuracy"], key if row == 0 else None
            below, above = _errors([accuracy], report["n"])
            bars.barh(row + shift, accuracy, 0.38, color=color, label=label, xerr=(below, above), error_kw=ERROR_BARS)
            bars.text(accuracy + above[0] + 1, row + shift, f"{accuracy:.2f}", va="center", fontsize="small")
    bars.set_yticks(range(len(reports)), [fill(name, 32) for name in reports], fontsize="small")
    bars.set(xlim=(0, 114), ylim=(len(reports) - 0.5, -0.5), xticks=range(0, 101, 25))
    bars.set_xlabel("accuracy with 95% interval, %")
    bars.spines[["top", "right"]].set_visible(False)
    bars.spines["bottom"].set_bounds(0, 100)
    bars.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize="small")
    if len(heights) > 1:
        _epsilons(grid[1, 0], curves, *norms)
        grid[1, 0].legend(loc="upper left", bbox_to_anchor=(0, -0.2), frameon=False, fontsize="small")
    _save(figure, file)


def _epsilons(axes: Axes, curves: dict[str, tuple[list[dict[str, Any]], int]], norm: str) -> None:
    unit = 255 if norm == "linf" else 1
    for name, (curve, n) in curves.items():
        epsilons = [0, *(unit * point["epsilon"] for point in curve)]
        accuracies = [curve[0]["clean_accuracy"], *(point["robust_accuracy"] for point in curve)]
        axes.errorbar(epsilons, accuracies, _errors(accuracies, n), fmt="o-", capsize=2, label=fill(name, 44))
    axes.set(xlabel=f"epsilon ({norm})" + ", in 1/255" * (norm == "linf"), ylabel="robust accuracy, %")
    axes.set(ylim=(0, 102))
    axes.margins(x=0.03)
    axes.xaxis.get_major_locator().set_params(integer=norm == "linf")
    axes.grid(alpha=0.3)


def _errors(accuracies: list[float], n: int) -> tuple[list[float], list[float]]:
    """Return how far the 95% intervals of accuracies (percent of n images) reach below and above them."""
    limits = [accuracy_interval(accuracy, n) for accuracy in accuracies]
    pairs = list(zip(accuracies, limits, strict=True))
    return [max(0.0, a - low) for a, (low, _) in pairs], [max(0.0, high - a) for a, (_, high) in pairs]


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _save(figure: Figure, file: Path | BinaryIO) -> None:
    figure.savefig(file, format="png", dpi=160)


@plain_text
def plot_runs(runs: dict[str, list[dict[str, Any]]], file: Path | BinaryIO) -> None:
    """Draw loss, clean and PGD-20 accuracy of several training runs against the epoch.

    Args:
        runs: the entries of metrics.jsonl by name, at least one of each.
        file: for the PNG.
    """
    panels = {"loss": "training loss", "student_clean": "clean accuracy, %", "student_robust": "PGD-20 accuracy, %"}
    figure = Figure(figsize=(12, 3.6 + 0.2 * -(-len(runs) // 3)), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name, metrics in runs.items():
            values = [entry.get(key, float("nan")) for entry in metrics]
            axes.plot([entry["epoch"] for entry in metrics], values, ".-", label=_shortened(name, 40))
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    _save(figure, file)


@plain_text
def plot_sweep(groups: dict[str, dict[str, list[float]]], file: Path | BinaryIO) -> None:
    """Draw the accuracies of a sweep: a point for each run, and mean and standard deviation of each group.

    Args:
        groups: percent of each run, by group and by the name of the figure; at least one group of one run.
        file: for the PNG.
    """
    figure = Figure(figsize=(max(4.8, 1.2 * len(groups) + 2.4), 3.8), layout="constrained")
    axes, names = figure.subplots(), list(dict.fromkeys(name for group in groups.values() for name in group))
    for i, name in enumerate(names):
        shift = 0.16 * (i - (len(names) - 1) / 2)
        for position, group in enumerate(groups.values()):
            values, color = group.get(name, []), f"C{i}"
            axes.plot([position + shift] * len(values), values, "o", color=color, alpha=0.4, markersize=4)
            if values:
                spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                label = name if position == 0 else None
                axes.errorbar(
                    position + shift + 0.05,
                    float(np.mean(values)),
                    spread,
                    fmt="_",
                    color=color,
                    capsize=4,
                    label=label,
                )
    axes.set_xticks(range(len(groups)), [fill(name, 16) for name in groups], fontsize="small")
    axes.set(xlim=(-0.6, len(groups) - 0.4), ylabel="accuracy, %\n(bars: mean ± standard deviation)")
    axes.grid(axis="y", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")
    _save(figure, file)
