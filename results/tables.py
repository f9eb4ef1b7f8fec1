"""The tables of README.md and docs/, each a function of the records and of how a page links to a file."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from report.page import interval, result_line
from results.benchmark_tables import Link, agreement_table, front_end_table, included, markdown_table, speed_table
from results.records import Recipe, Records, Run, display
from results.scaling_tables import gpus_table, processes_table
from utils.options import format_epsilon

CIFAR_IMAGES = 50_000


def accuracies(clean: float, robust: float) -> str:
    return f"{clean:.2f} / {robust:.2f}"


def chosen_on(run: Run, report: dict[str, Any]) -> str:
    """On which images the attacked epoch was chosen."""
    name = Path(report["checkpoint"]).name
    if name == "best.pt":
        return f"{run.config['val_size']} held-out images" if run.config["val_size"] else "test set"
    epoch = re.search(r"epoch(\d+)", name)
    return f"epoch {int(epoch[1])}, not chosen" if epoch else "last epoch, not chosen"


def suite(report: dict[str, Any]) -> str:
    return "AutoAttack" if report["version"] == "standard" else "only " + ", ".join(report["attacks"])


def attacked(report: dict[str, Any]) -> str:
    """``46.80 / 19.60 at 0.031``, and which attacks ran if it was not the standard suite, in fp32."""
    figures = f"{accuracies(report['clean_accuracy'], report['robust_accuracy'])} at {report['epsilon_text']}"
    notes = [suite(report)] if report["version"] != "standard" else []
    if report.get("precision", "fp32") != "fp32":
        notes.append(f"queries in {report['precision']}")
    return f"{figures} ({', '.join(notes)})" if notes else figures


# -- recipes -----------------------------------------------------------------------------------------------------------


def status(records: Records, link: Link) -> str:
    """One sentence: how much of what was published has been reproduced."""
    published = [recipe for recipe in records.recipes.values() if records.published_row(recipe)]
    full = [recipe for recipe in published if records.reproduction(recipe)]
    shorter = [r for r in records.recipes.values() if r not in published and records.reproduction(r)]
    done = f"{len(full)} of the {len(published)} recipes" if full else f"None of the {len(published)} recipes"
    verb = "has" if len(full) <= 1 else "have"
    sentence = f"{done} with a published figure {verb} been trained at full length here yet"
    if shorter:
        names = ", ".join(link(r.script, r.name) for r in shorter)
        sentence += f"; measured so far, with a shorter schedule: {names}"
    return sentence + "."


def headline(records: Records, link: Link) -> str:
    """LBGAT0 and LBGAT6 alone: published beside measured."""
    rows = []
    for recipe in records.recipes.values():
        row, run = records.published_row(recipe), records.reproduction(recipe)
        if not re.match(r"LBGAT[06]\b", recipe.method) or not (row or run):
            continue
        start = [display(recipe.config.dataset), recipe.method, display(recipe.config.student)]
        published = accuracies(float(row["clean"]), float(row["autoattack"])) if row else ""
        for report in run.reports if run else []:
            measured = link(run.folder, accuracies(report["clean_accuracy"], report["robust_accuracy"]))
            if report["version"] != "standard":
                measured += f" ({suite(report)})"
            same = row and row["epsilon"] == report["epsilon_text"]
            figures = [report["epsilon_text"], published if same else "", measured]
            sample = [f"{report['n']:,}", interval(report["robust_accuracy"], report["n"])]
            rows.append([*start, *figures, f"{run.epochs[-1]['epoch']}", *sample])
        if row and not run:
            rows.append([*start, row["epsilon"], published, "", "", "", ""])
    head = [
        "data set", "method", "network", "epsilon", "published", "measured", "epochs", "images attacked",
        "95% interval of robust",
    ]  # fmt: skip
    return markdown_table(head, rows)


def hours(recipe: Recipe, gflop: float, rates: dict[str, float]) -> float:
    """Estimated hours of training: GFLOP of the whole run over the GFLOP/s measured for the same kind of network."""
    rate = rates["wrn-34-10" if recipe.config.student.startswith("wrn") else "resnet18"]
    return CIFAR_IMAGES * recipe.config.epochs * gflop / rate / 3600


def recipes_table(records: Records, link: Link) -> str:
    """Every recipe: what was published, what it costs, what was measured."""
    (costs,) = records.json_files("recipe-cost/gflop.json").values()
    steps = records.json_files("train-step-h100/*.json").values()
    rates = {step["arguments"]["student"]: step["gflops_per_second"] for step in steps}
    rows = []
    for recipe in records.recipes.values():
        row, run = records.published_row(recipe), records.reproduction(recipe)
        reports = run.reports if run else []
        gflop = costs.get(recipe.name)
        rows.append(
            [
                link(recipe.script, recipe.script.name),
                recipe.method,
                display(recipe.config.dataset),
                display(recipe.config.student),
                f"{accuracies(float(row['clean']), float(row['autoattack']))} at {row['epsilon']}" if row else "",
                f"{gflop:.0f}" if gflop else "",
                f"{hours(recipe, gflop, rates):.1f}" if gflop else "",
                ", ".join(link(run.folder, f"{attacked(report)}, {report['n']:,} images") for report in reports),
            ]
        )
    head = [
        "script", "method", "data set", "network", "published", "GFLOP per image", "H100 hours, estimated", "measured",
    ]  # fmt: skip
    return markdown_table(head, rows)


# -- runs --------------------------------------------------------------------------------------------------------------


def is_quickstart(run: Run) -> bool:
    return run.folder.name.startswith("quickstart")


def attack_cells(run: Run) -> list[list[str]]:
    """Of each report: figures, images, interval and what the epoch was chosen on; one empty row if there is none."""
    return [
        [attacked(r), f"{r['n']:,}", interval(r["robust_accuracy"], r["n"]), chosen_on(run, r)] for r in run.reports
    ] or [[""] * 4]


def last_epoch(run: Run) -> str:
    last = run.epochs[-1]
    figures = accuracies(last["student_clean"], last["student_robust"])
    return f"{figures} at {format_epsilon(run.config['epsilon'])} ({last['robust_images']:,} {last['split']} images)"


def trained_on(config: dict[str, Any]) -> str:
    """``1,000``, ``all`` or ``all but 137``, which were held out."""
    if config["limit_train"]:
        return f"{config['limit_train']:,}"
    return f"all but {config['val_size']:,}" if config["val_size"] else "all"


def runs_table(records: Records, link: Link) -> str:
    """Every run but the quickstart's: its last epoch and its AutoAttack reports."""
    rows = []
    for name, run in records.runs.items():
        if not run.epochs or is_quickstart(run):
            continue
        config = run.config
        start = [
            link(run.folder, name),
            display(config["dataset"]),
            display(config["student"]),
            f"{run.epochs[-1]['epoch']} of {trained_on(config)} images",
            last_epoch(run),
        ]
        rows += [[*start, *cells, config["hardware"]] for cells in attack_cells(run)]
    head = [
        "run", "data set", "network", "epochs", "clean / PGD-20 after the last epoch", "clean / AutoAttack",
        "images attacked", "95% interval of robust", "epoch chosen on", "hardware",
    ]  # fmt: skip
    return markdown_table(head, rows)


def quickstart_table(records: Records, link: Link) -> str:
    """The result of quickstart.sh, and of the same network trained without an attack."""
    rows = [
        [link(run.folder, run.config["method"]), *cells, run.config["hardware"]]
        for run in records.runs.values()
        if is_quickstart(run)
        for cells in attack_cells(run)
    ]
    head = ["method", "clean / AutoAttack", "images attacked", "95% interval of robust", "epoch chosen on", "hardware"]
    return markdown_table(head, rows)


def shipped_table(records: Records, link: Link) -> str:
    """The networks in checkpoints/ that have a folder of results, and every attack on them."""
    rows = [
        [link(path, path.stem), display(run.config["dataset"]), display(run.config["student"]), *cells]
        for path in sorted((records.root / "checkpoints").glob("*.pt"))
        if (run := records.runs.get(path.stem))
        for cells in attack_cells(run)
    ]
    head = ["network", "data set", "architecture", "clean / AutoAttack", "images attacked", "95% interval of robust"]
    return markdown_table([*head, "epoch chosen on"], rows)


def quickstart_line(records: Records, link: Link) -> str:
    """The last line that quickstart.sh prints."""
    return f"```\n{result_line(records.runs['quickstart-digits'].reports[0])}\n```"


def others_table(records: Records, link: Link) -> str:
    """Published figures for which there is no recipe here."""
    rows = [
        [
            display(row["dataset"]),
            row["method"],
            row["architecture"],
            row["extra_data"],
            f"{accuracies(float(row['clean']), float(row['autoattack']))} at {row['epsilon']}",
            row["source"],
        ]
        for row in records.published
        if not any(recipe.publishes(row) for recipe in records.recipes.values())
    ]
    return markdown_table(["data set", "method", "network", "extra data", "clean / AutoAttack", "source"], rows)


TABLES: dict[str, Callable[[Records, Link], str]] = {
    "status": status,
    "headline": headline,
    "recipes": recipes_table,
    "runs": runs_table,
    "quickstart": quickstart_table,
    "quickstart_line": quickstart_line,
    "shipped": shipped_table,
    "others": others_table,
    "speed": speed_table,
    "front_end": front_end_table,
    "agreement": agreement_table,
    "methods": partial(included, "*/methods.md"),
    "studies": partial(included, "study-*/study.md"),
    "ablations": partial(included, "ablations-*/ablations.md"),
    "precision": partial(included, "*/precision.md"),
    "processes": processes_table,
    "gpus": gpus_table,
    "predictions": partial(included, "*/predictions.md"),
}
