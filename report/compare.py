"""Several finished evaluations in one picture and one table."""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.markup import Table, markdown, markdown_table
from report.page import NO_PICTURES, draw, percent, suite_name
from utils.errors import UserError, ensure_writable
from utils.files import write_atomically

NEEDED = {
    "model": str, "dataset": str, "data_sha256": str, "n": int, "norm": str, "epsilon_text": str, "version": str,
    "attacks": list, "clean_accuracy": float, "robust_accuracy": float,
}  # fmt: skip


def compare(paths: Sequence[str], folder: Path) -> str:
    """Write ``compare.png`` and ``compare.md``.

    Args:
        paths: ``autoattack.json`` of finished evaluations, or the folders that hold it.
        folder: where the two files go.

    Returns:
        The table, a warning if the evaluations differ in more than the network, and where the files are.

    Raises:
        UserError: a file is missing or not such a report, or the folder cannot be written.
    """
    ensure_writable(folder, "--log-dir")
    reports = read_reports(paths)
    table, differ = results_table(reports), differing(list(reports.values()))
    warning = [f"Warning: not the same measurement, these differ: {', '.join(differ)}."] if differ else []
    if importlib.util.find_spec("matplotlib") is None:
        picture, where = NO_PICTURES, NO_PICTURES
    else:
        from report.plots import plot_comparison

        labels = {_label(name, report, differ): report for name, report in reports.items()}
        picture = draw(folder / "compare.png", "accuracy of each network", plot_comparison, labels)
        where = f"picture: {folder / 'compare.png'}"
    page = markdown("AutoAttack on several networks", [("Clean and robust accuracy", [*warning, table, picture])])
    write_atomically(folder / "compare.md", lambda file: file.write(page.encode()))
    return "\n".join([markdown_table(table), *warning, f"table: {folder / 'compare.md'}", where])


def read_reports(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each report by a name of its own: its folder's, or the whole path where these coincide.

    Raises:
        UserError: a file is missing, or not such a report.
    """
    files = [path / "autoattack.json" if path.is_dir() else path for path in map(Path, paths)]
    files = list(dict.fromkeys(files))
    folders = [file.resolve().parent.name for file in files]
    return {
        folder if folders.count(folder) == 1 else str(file): read_report(file)
        for folder, file in zip(folders, files, strict=True)
    }


def read_report(path: Path) -> dict[str, Any]:
    """Raises: UserError: the file is missing, or not a report of eval_autoattack.py."""
    try:
        report = json.loads(path.read_text())
        fits = all(isinstance(report[key], kind) for key, kind in NEEDED.items())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): pass the autoattack.json of an evaluation") from error
    except (ValueError, LookupError, TypeError):
        fits = False
    if not fits:
        raise UserError(f"{path} is no report of eval_autoattack.py: pass the autoattack.json of an evaluation")
    return report


def settings(report: dict[str, Any]) -> dict[str, str]:
    """Everything but the network that must be the same where two accuracies are compared."""
    return {
        "data set": report["dataset"],
        "images": str(report["n"]),
        "norm": report["norm"],
        "epsilon": report["epsilon_text"],
        "suite": suite_name(report),
    }


def differing(reports: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the settings in which the reports differ."""
    first, *others = map(settings, reports)
    names = [name for name in first if any(other[name] != first[name] for other in others)]
    hashes = {report["data_sha256"] for report in reports}
    return names or ["the pixels or labels of the images"] * (len(hashes) > 1)


def results_table(reports: dict[str, dict[str, Any]]) -> Table:
    rows = [
        [
            name,
            report["model"],
            *settings(report).values(),
            percent(report["clean_accuracy"]),
            percent(report["robust_accuracy"]),
        ]
        for name, report in reports.items()
    ]
    return Table(["evaluation", "network", *settings(next(iter(reports.values()))), "clean", "robust"], rows)


def _label(name: str, report: dict[str, Any], differ: Sequence[str]) -> str:
    """The name and whatever must not be overlooked where it stands beside the others."""
    told = [f"{setting} {value}" for setting, value in settings(report).items() if setting in differ]
    return f"{name} ({', '.join(told)})" if told else name
