"""Compare finished evaluations in one picture and one table."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report.page import draw, interval, percent, suite_name, write_bytes
from report.read import read_report
from report.render import render
from report.tables import Table, markdown_table
from utils.errors import ensure_writable


def compare(paths: Sequence[str], folder: Path) -> str:
    """Write ``compare.png`` and ``compare.md``.

    Args:
        paths: ``autoattack.json`` of finished evaluations, or the folders that hold it.
        folder: for the two files.

    Returns:
        The table, a warning if the evaluations differ in more than the network, and the paths of the files.

    Raises:
        UserError: a file is missing or not such a report, or the folder cannot be written.
    """
    ensure_writable(folder, "--log-dir")
    reports = read_reports(paths)
    table, differ = results_table(reports), differing(list(reports.values()))
    warning = f"Warning: not the same measurement, these differ: {', '.join(differ)}." if differ else ""
    labels = {_label(name, report, differ): report for name, report in reports.items()}
    picture = folder / "compare.png"
    problem = draw(picture, "plot_comparison", labels)
    page = render("compare.md.j2", warning=warning, table=table, problem=problem)
    write_bytes(folder / "compare.md", page)
    lines = [markdown_table(*table), warning, f"table: {folder / 'compare.md'}", problem or f"picture: {picture}"]
    return "\n".join(filter(None, lines)).encode("utf-8", "backslashreplace").decode()


def read_reports(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return each report by a unique name: its folder's, or the whole path where two folders have one name.

    Raises:
        UserError: a file is missing, or not such a report.
    """
    files = [path / "autoattack.json" if path.is_dir() else path for path in map(Path, paths)]
    reports = {file: read_report(file) for file in files}
    folders = [os.path.basename(os.path.dirname(os.path.realpath(file))) for file in reports]
    return {
        folder if folders.count(folder) == 1 else str(file): report
        for folder, (file, report) in zip(folders, reports.items(), strict=True)
    }


def settings(report: dict[str, Any]) -> dict[str, str]:
    """Return all settings but the network: two accuracies compare only where these are the same."""
    return {
        "data set": report["dataset"],
        "images": str(report["n"]),
        "norm": report["norm"],
        "epsilon": report["epsilon_text"],
        "suite": suite_name(report),
        "precision": f"{report.get('precision', 'fp32')}{', front end' if report.get('plain') else ''}",
    }


def differing(reports: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the settings in which the reports differ."""
    first, *others = map(settings, reports)
    names = [name for name in first if any(other[name] != first[name] for other in others)]
    hashes = {report["data_sha256"] for report in reports}
    return names or ["the pixels or labels of the images"] * (len(hashes) > 1)


def results_table(reports: dict[str, dict[str, Any]]) -> Table:
    rows = []
    for name, report in reports.items():
        accuracies = report["clean_accuracy"], report["robust_accuracy"]
        figures = [cell for accuracy in accuracies for cell in (percent(accuracy), interval(accuracy, report["n"]))]
        rows.append([name, report["model"], *settings(report).values(), *figures])
    names = settings(next(iter(reports.values())))
    return Table(["evaluation", "network", *names, "clean", "95% interval", "robust", "95% interval"], rows)


def _label(name: str, report: dict[str, Any], differ: Sequence[str]) -> str:
    """Return the name with the settings that differ, and with the suite where it is not the standard one."""
    shown = [
        f"{setting} {value}"
        for setting, value in settings(report).items()
        if setting in differ or (setting == "suite" and report["version"] != "standard")
    ]
    return f"{name} ({', '.join(shown)})" if shown else name
