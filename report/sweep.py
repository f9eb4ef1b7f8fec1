"""Table and picture of a sweep: ``python -m report.sweep Logs/SWEEP``."""

import argparse
import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.curves import read_runs
from report.page import draw, suite_name, write_bytes
from report.read import read_report
from report.tables import NONE, Table, markdown_table
from utils.errors import UserError, run_program
from utils.files import read_json

FIGURES = {"student_clean": "clean", "student_robust": "PGD-20", "average_clean": "average, clean",
           "average_robust": "average, PGD-20"}  # fmt: skip


def read_sweep(folder: Path, by: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of a sweep's folder, each with its name, seed and figures in percent, by the value of a flag.

    Args:
        by: the setting whose values are compared; empty puts all runs into one group.

    Raises:
        UserError: there is no finished run, one has no such setting, or their data sets differ.
    """
    folders = sorted(path.parent for path in folder.glob("*/metrics.jsonl"))
    if not folders:
        raise UserError(f"{folder} holds no run: pass the folder of a sweep, with the Logs/MARK of its runs in it")
    groups: dict[str, list[dict[str, Any]]] = {}
    datasets = set()
    for path, metrics in zip(folders, read_runs(folders).values(), strict=True):
        try:
            config = read_json(path / "config.json")
            group = f"{by} {config[by]}" if by else folder.name
            datasets.add(config["dataset"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{path}/config.json does not tell the setting {by!r}: train this run again") from error
        figures = {name: metrics[-1][key] for key, name in FIGURES.items() if key in metrics[-1]}
        if (path / "autoattack.json").exists():
            report = read_report(path / "autoattack.json")
            suite = suite_name(report)
            figures[f"{suite}, epsilon {report['epsilon_text']}, {report['n']} images"] = report["robust_accuracy"]
        run = {"run": path.name, "seed": config.get("seed"), "epoch": metrics[-1]["epoch"], "figures": figures}
        groups.setdefault(group, []).append(run)
    if len(datasets) > 1 and by != "dataset":
        raise UserError(
            f"{folder} holds runs on {', '.join(sorted(datasets))}: pass a folder with those on one data set"
        )
    return groups


def spread(values: Sequence[float], digits: int = 1) -> str:
    """``48.3 ± 0.4``: mean and sample standard deviation; of a single value just the value."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def sweep_table(groups: dict[str, list[dict[str, Any]]]) -> Table:
    """A row for each group: the number of its runs, their last epochs, and mean ± standard deviation of each figure."""
    names = list(dict.fromkeys(name for runs in groups.values() for run in runs for name in run["figures"]))
    rows = []
    for group, runs in groups.items():
        columns = [[run["figures"][name] for run in runs if name in run["figures"]] for name in names]
        # A figure that only some of the runs have would be of other runs than its neighbours.
        cells = [spread(values, 2) if len(values) == len(runs) else NONE for values in columns]
        epochs = sorted({run["epoch"] for run in runs})
        rows.append([group, str(len(runs)), ", ".join(map(str, epochs)), *cells])
    return Table(["", "runs", "epochs", *names], rows)


def write_sweep(folder: Path, by: str = "") -> str:
    """Write ``sweep.md``, ``sweep.csv`` (one line a run) and ``sweep.png``; return the table and their paths.

    Raises:
        UserError: as ``read_sweep``, or a file cannot be written.
    """
    groups = read_sweep(folder, by)
    table = sweep_table(groups)
    text = markdown_table(*table)
    note = "Accuracies in percent after the last epoch: mean ± sample standard deviation over the runs."
    write_bytes(folder / "sweep.md", f"# {folder.name}\n\n{note}\n\n{text}\n".encode())
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["group", "run", "seed", "epoch", *table.head[3:]])
    for group, runs in groups.items():
        for run in runs:
            figures = [run["figures"].get(name, "") for name in table.head[3:]]
            writer.writerow([group, run["run"], run["seed"], run["epoch"], *figures])
    write_bytes(folder / "sweep.csv", lines.getvalue().encode())
    points = {
        group: {name: [run["figures"][name] for run in runs if name in run["figures"]] for name in table.head[3:]}
        for group, runs in groups.items()
    }
    problem = draw(folder / "sweep.png", "plot_sweep", points)
    return "\n".join(
        [text, f"table: {folder / 'sweep.md'}, {folder / 'sweep.csv'}", problem or f"picture: {folder / 'sweep.png'}"]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m report.sweep", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="Logs/SWEEP", help="folder with the log folders of the runs")
    parser.add_argument("--by", default="", metavar="FLAG", help="compare the values of this flag, e.g. beta")
    arguments = parser.parse_args(argv)
    print(write_sweep(arguments.folder, arguments.by.lstrip("-").replace("-", "_")))


if __name__ == "__main__":
    run_program(main)
