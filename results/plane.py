"""The clean-against-robust plane: what was published and what was measured here, in one picture.

    python -m results.plane --out docs/figures/plane.png

Published figures are of full schedules and large networks; those of results/ say how far a smaller budget carries. Only
standard AutoAttack at 0.031 and 8/255, which are all but the same. Clean accuracy of a study is of all test images. The
bars are 95% intervals of the images attacked.
"""

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from losses import find_method
from results.records import Records, display
from utils.errors import run_program
from utils.options import format_epsilon, parse_epsilon
from utils.statistics import accuracy_interval

FAMILIES = {"LBGAT": "tab:orange", "TRADES": "tab:blue", "AT": "tab:green", "": "tab:gray"}
DATASETS = {"cifar100": "CIFAR-100", "cifar10": "CIFAR-10"}
EPSILONS = (0.031, 8 / 255)
NAMED = ("LBGAT0", "LBGAT6", "LBGAT-AWP*", "TRADES6", "TRADES-AWP")  # of the published
FEWEST = 500  # images attacked in a run beside the studies


@dataclass(frozen=True)
class Point:
    """A method's mean over seeds, in percent. ``budget`` is empty where it was published, ``images`` (attacked) 0."""

    dataset: str
    method: str
    budget: str
    clean: float
    robust: float
    images: int = 0

    @property
    def family(self) -> str:
        return next(name for name in FAMILIES if self.method.startswith(name))


def published(records: Records) -> list[Point]:
    """Every published figure at these epsilons without further training images."""
    return [
        Point(row["dataset"], row["method"], "", float(row["clean"]), float(row["autoattack"]))
        for row in records.published
        if not row["extra_data"] and any(abs(parse_epsilon(row["epsilon"]) - e) < 1e-6 for e in EPSILONS)
    ]


def measured(records: Records) -> list[Point]:
    """Every method of every study on these data sets, at 0.031, and every other run that has been attacked so."""
    points = []
    for run in records.runs.values():
        for report in run.reports:
            if (report["dataset"] in DATASETS and report["version"] == "standard" and report["n"] >= FEWEST
                    and report["epsilon"] == EPSILONS[0]):  # fmt: skip
                budget = f"{display(run.config['student'])}, {len(run.epochs)} epochs"
                method = find_method(run.config["method"]).tag.format(**run.config).upper()
                accuracies = report["clean_accuracy"], report["robust_accuracy"]
                points.append(Point(report["dataset"], method, budget, *accuracies, report["n"]))
    for study in records.json_files("study-*/study.json").values():
        of: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for run in study["runs"]:
            if study["dataset"] in DATASETS and run["epsilon"] == EPSILONS[0]:
                of[run["method"]].append(run)
        budget = f"{display(study['student'])}, {study['epochs']} epochs"
        for method, runs in of.items():
            clean, robust = (float(np.mean([run[what] for run in runs])) for what in ("clean", "robust"))
            points.append(Point(study["dataset"], method, budget, clean, robust, runs[0]["images"]))
    return points


def draw(points: list[Point], path: Path) -> None:
    """A panel for each data set; published points are hollow, measured ones full and named; a color for each family."""
    figure = Figure(figsize=(10.5, 4.8), layout="constrained")
    for axes, (dataset, title) in zip(figure.subplots(1, 2), DATASETS.items(), strict=True):
        named: dict[str, Point] = {}
        for point in sorted((p for p in points if p.dataset == dataset), key=lambda p: -p.robust):
            color = FAMILIES[point.family]
            axes.scatter(
                point.clean, point.robust, s=55 if point.budget else 28, color=color if point.budget else "none",
                edgecolors=color,
            )  # fmt: skip
            if point.images:
                low, high = accuracy_interval(point.robust, point.images)
                axes.vlines(point.clean, low, high, color=color, alpha=0.5)
            if point.budget or point.method in NAMED:
                text = f"{point.method} ({point.budget})" if point.budget else point.method
                if text in named:
                    continue
                near = any(abs(p.clean - point.clean) < 3 and abs(p.robust - point.robust) < 2 for p in named.values())
                named[text] = point
                axes.annotate(
                    text,
                    (point.clean, point.robust),
                    (4, -9 if near else 4),
                    textcoords="offset points",
                    fontsize=6.5,
                    color=color,
                )
        axes.set(title=title, xlabel="clean accuracy, %", ylabel="AutoAttack accuracy, %")
        axes.margins(0.12)
        axes.grid(alpha=0.3)
    for family, color in FAMILIES.items():
        axes.scatter([], [], color=color, label=family or "others")
    axes.legend(fontsize="small", loc="lower left")
    figure.suptitle("hollow: published, full schedules; full: measured here, short ones", fontsize="medium")
    figure.savefig(path, dpi=130)


def draw_study(points: dict[float, dict[str, list[tuple[float, float]]]], path: Path) -> None:
    """A panel for each epsilon: every run's clean and robust accuracy, and each method's mean by its name."""
    figure = Figure(figsize=(4.6 * len(points), 4.2), layout="constrained")
    for axes, (epsilon, methods) in zip(
        figure.subplots(1, len(points), squeeze=False)[0], sorted(points.items()), strict=True
    ):
        for method, runs in methods.items():
            color = axes.scatter(*zip(*runs, strict=True), s=14, alpha=0.5).get_facecolor()
            mean = np.mean(runs, axis=0)
            axes.scatter(*mean, s=60, color=color[:, :3], label=method, edgecolors="black", linewidths=0.6)
        axes.set(
            title=f"epsilon {format_epsilon(epsilon)}", xlabel="clean accuracy, %", ylabel="AutoAttack accuracy, %"
        )
        axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out, records = parser.parse_args().out, Records()
    draw([*published(records), *measured(records)], out)


if __name__ == "__main__":
    run_program(main)
