"""Curves of several training runs in one picture: ``python -m report.curves Logs/A Logs/B``."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.page import draw
from utils.errors import UserError, run_program
from utils.files import read_metrics


def read_runs(folders: Sequence[str | Path]) -> dict[str, list[dict[str, Any]]]:
    """The entries of each folder's metrics.jsonl, by the folder's name, or by its path where two have one name.

    Raises:
        UserError: a folder has no metrics.jsonl, or none of an epoch.
    """
    paths = [Path(folder) for folder in folders]
    names = [os.path.basename(os.path.realpath(path)) for path in paths]
    runs = {}
    for path, name in zip(paths, names, strict=True):
        file = path / "metrics.jsonl"
        metrics = read_metrics(file) if file.is_file() else []
        if not metrics:
            raise UserError(f"{path} holds no finished epoch (metrics.jsonl): pass the Logs/MARK of a training run")
        runs[name if names.count(name) == 1 else str(path)] = metrics
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m report.curves", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="Logs/MARK", help="log folders of training runs")
    parser.add_argument(
        "--out", default="Logs/curves.png", metavar="FILE.png", help="the picture (default: %(default)s)"
    )
    arguments = parser.parse_args(argv)
    runs, out = read_runs(arguments.folders), Path(arguments.out)
    if out.suffix != ".png":
        raise UserError(f"--out {out} must be a FILE.png")
    for name, metrics in runs.items():
        last = metrics[-1]
        if not last.keys() >= {"student_clean", "student_robust"}:
            raise UserError(f"{name}: its metrics.jsonl is not of a training run")
        print(
            f"{name}: epoch {last['epoch']}, clean {last['student_clean']:.2f}%, PGD-20 {last['student_robust']:.2f}%"
        )
    if problem := draw(out, "plot_runs", runs):
        raise UserError(problem)
    print(f"picture: {out}")


if __name__ == "__main__":
    run_program(main)
