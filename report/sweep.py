"""Table and picture of a sweep: ``python -m report.sweep Logs/SWEEP``."""

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.page import draw, suite_name, write_bytes
from report.read import read_report
from report.tables import NONE, Table, markdown_table
from utils.errors import UserError, run_program
from utils.files import file_hash, read_json, read_metrics
from utils.provenance import PROVENANCE

FIGURES = {"student_clean": "clean", "student_robust": "PGD-20", "average_clean": "average, clean",
           "average_robust": "average, PGD-20"}  # fmt: skip

MAY_DIFFER = {
    *PROVENANCE, "dataset", "seed", "mark", "log_dir", "checkpoint_dir", "data_dir", "guide_checkpoint", "device",
    "epochs", "resume", "max_minutes", "save_freq", "log_interval", "compile", "tensorboard", "patience",
}  # fmt: skip


def read_sweep(folder: Path, by: str) -> dict[str, list[dict[str, Any]]]:
    """The runs of a sweep's folder, each with its name, seed and figures in percent, by the value of a flag.

    A run without a finished epoch is left out, and so is an evaluation of other weights than the run now has; a notice
    says so.

    Args:
        by: the setting whose values are compared; empty puts all runs into one group.

    Raises:
        UserError: there is no run with a finished epoch, one has no such setting, their data sets differ, or runs of a
            group differ in more than their seed.
    """
    found = {path.parent: read_metrics(path) for path in sorted(folder.glob("*/metrics.jsonl"))}
    runs = {path: metrics for path, metrics in found.items() if metrics}
    if not runs:
        raise UserError(f"{folder} holds no run: pass the folder of a sweep, with the Logs/MARK of its runs in it")
    if unfinished := [path.name for path in found.keys() - runs.keys()]:
        print(f"notice: no finished epoch, left out: {', '.join(sorted(unfinished))}", file=sys.stderr)
    groups: dict[str, list[dict[str, Any]]] = {}
    datasets, first = set(), {}
    for path, metrics in runs.items():
        try:
            config = read_json(path / "config.json")
            group = f"{by} {config[by]}" if by else folder.name
            datasets.add(config["dataset"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{path}/config.json does not tell the setting {by!r}: train this run again") from error
        other, settings = first.setdefault(group, (path.name, config))
        if differ := [n for n in config if n not in MAY_DIFFER and n in settings and config[n] != settings[n]]:
            raise UserError(
                f"{folder}: {other} and {path.name} differ in {', '.join(differ)}: pass --by {differ[0]}, or a folder "
                "with runs that differ in their seed alone"
            )
        figures = {name: metrics[-1][key] for key, name in FIGURES.items() if key in metrics[-1]}
        figures |= _attacked(path / "autoattack.json")
        run = {"run": path.name, "seed": config.get("seed"), "epoch": metrics[-1]["epoch"], "figures": figures}
        groups.setdefault(group, []).append(run)
    if len(datasets) > 1 and by != "dataset":
        raise UserError(
            f"{folder} holds runs on {', '.join(sorted(datasets))}: pass a folder with those on one data set"
        )
    return groups


def _attacked(file: Path) -> dict[str, float]:
    """Robust accuracy by what was measured; nothing where the weights have been replaced since."""
    if not file.exists():
        return {}
    report = read_report(file)
    weights = Path(str(report.get("checkpoint") or ""))
    if weights.is_file() and file_hash(weights) != report.get("checkpoint_sha256"):
        print(f"notice: {file} is of other weights than {weights} has now, left out: attack it again", file=sys.stderr)
        return {}
    which = "" if weights.name in ("", "last.pt") else f"{weights.stem}, "
    norm = "" if report["norm"] == "linf" else f" in {report['norm']}"
    what = f"{which}{suite_name(report)}, epsilon {report['epsilon_text']}{norm}, {report['n']} images"
    return {what: report["robust_accuracy"]}


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
    write_bytes(folder / "sweep.md", f"# {folder.name}\n\n{note}\n\n{text}\n".encode("utf-8", "backslashreplace"))
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["group", "run", "seed", "epoch", *table.head[3:]])
    for group, runs in groups.items():
        for run in runs:
            figures = [run["figures"].get(name, "") for name in table.head[3:]]
            writer.writerow([group, run["run"], run["seed"], run["epoch"], *figures])
    write_bytes(folder / "sweep.csv", lines.getvalue().encode("utf-8", "backslashreplace"))
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
