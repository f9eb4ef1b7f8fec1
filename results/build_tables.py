#!/usr/bin/env python3
"""Write the README's tables from results/published.csv, the recipes in sh/ and the runs in results/.

A run is a folder: config.json and metrics.jsonl as training leaves them in Logs/, and any number of AutoAttack reports,
autoattack*.json. It counts as a reproduction of a recipe where the recipe's name is the folder's and its settings are
those of the script; every other run stands in a table of its own.

python results/build_tables.py           writes the tables between the markers of README.md
python results/build_tables.py --check   exits 1 if README.md is out of date
"""

import argparse
import csv
import dataclasses
import json
import re
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.config import TrainConfig, parse_train
from engine.train_state import MAY_CHANGE_ON_RESUME
from utils.errors import UserError, run_program
from utils.options import format_epsilon

ROOT = Path(__file__).resolve().parent.parent
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "digits": "digits"}
NOT_PART_OF_A_RECIPE = (MAY_CHANGE_ON_RESUME - {"epochs"}) | {"seed", "precision", "val_size", "eval_size"}
NONE = "–"
NO_RUNS = "Nothing measured yet."


@dataclass(frozen=True)
class Recipe:
    """What a script of sh/ trains."""

    script: Path
    config: TrainConfig


@dataclass(frozen=True)
class Run:
    """One folder under results/: its settings, its epochs, and its AutoAttack reports."""

    folder: Path
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    reports: list[dict[str, Any]]


def read_recipe(script: Path) -> Recipe:
    """The settings that a script of sh/ spells out."""
    command = script.read_text().split("train_lbgat.py", 1)[1].replace("\\\n", " ")
    *flags, rest = shlex.split(command)
    if rest != "$@":
        raise UserError(f"{script} does not pass on the user's flags")
    return Recipe(script, parse_train(flags))


def read_recipes(root: Path = ROOT) -> dict[str, Recipe]:
    """By name."""
    recipes = map(read_recipe, sorted((root / "sh").glob("train_*.sh")))
    return {recipe.config.mark: recipe for recipe in recipes}


def read_published(root: Path = ROOT) -> list[dict[str, str]]:
    with open(root / "results" / "published.csv", newline="") as file:
        return list(csv.DictReader(file))


def read_runs(root: Path = ROOT) -> list[Run]:
    """Every folder under results/ that holds a config.json."""
    runs = []
    for path in sorted((root / "results").glob("*/config.json")):
        metrics = path.with_name("metrics.jsonl")
        epochs = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        reports = [json.loads(p.read_text()) for p in sorted(path.parent.glob("autoattack*.json"))]
        reports.sort(key=lambda report: report["epsilon"])
        runs.append(Run(path.parent, json.loads(path.read_text()), epochs, reports))
    return runs


def reproduces(run: Run, recipe: Recipe) -> bool:
    """Whether the run's settings are the recipe's, in all that is part of a recipe."""
    expected = json.loads(json.dumps(dataclasses.asdict(recipe.config)))
    return all(run.config.get(k) == v for k, v in expected.items() if k not in NOT_PART_OF_A_RECIPE)


def chosen_on(run: Run, report: dict[str, Any]) -> str:
    """On which images the attacked epoch was chosen."""
    name = Path(report["checkpoint"]).name
    if name == "best.pt":
        return f"{run.config['val_size']} held-out images" if run.config["val_size"] else "test set"
    epoch = re.search(r"epoch(\d+)", name)
    return f"epoch {int(epoch[1])}, not chosen" if epoch else "last epoch, not chosen"


def suite(report: dict[str, Any]) -> str:
    return "AutoAttack" if report["version"] == "standard" else "only " + ", ".join(report["attacks"])


def network(name: str) -> str:
    """``wrn-34-10`` -> ``WRN-34-10``, ``resnet18`` -> ``ResNet-18``."""
    return name.upper() if name.startswith("wrn") else name.replace("resnet", "ResNet-")


def link(folder: Path, text: str, root: Path) -> str:
    return f"[{text}]({folder.relative_to(root)})"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def results_table(root: Path = ROOT) -> str:
    """Each recipe, the measured ones first: published beside measured."""
    published = {row["recipe"]: row for row in read_published(root) if row["recipe"]}
    runs = {run.folder.name: run for run in read_runs(root)}
    recipes = read_recipes(root)
    order = {name: i for i, name in enumerate(published)}
    rows, missing = [], []
    for name, recipe in sorted(recipes.items(), key=lambda item: (order.get(item[0], len(order)), item[0])):
        config, row = recipe.config, published.get(name)
        start = [
            f"[{name}]({recipe.script.relative_to(root)})",
            DATASETS[config.dataset],
            network(config.student),
            f"{row['clean']} / {row['autoattack']} at {row['epsilon']}" if row else NONE,
        ]
        run = runs.get(name)
        if run is None or not run.reports or not reproduces(run, recipe):
            missing.append([*start, "not reproduced yet", NONE, NONE, NONE])
            continue
        for report in run.reports:
            figures = f"{report['clean_accuracy']:.2f} / {report['robust_accuracy']:.2f} at {report['epsilon_text']}"
            if report["version"] != "standard":
                figures += f" ({suite(report)})"
            measured = link(run.folder, figures, root)
            rows.append([*start, measured, str(report["n"]), chosen_on(run, report), report["hardware"]])
    head = [
        "recipe", "data set", "student", "published", "measured", "images attacked", "epoch chosen on", "hardware",
    ]  # fmt: skip
    return table(head, rows + missing)


def attacked(run: Run) -> list[list[str]]:
    """Of each report: figures, images, and what the epoch was chosen on; one empty row if there is none."""
    rows = [
        [
            f"{r['clean_accuracy']:.2f} / {r['robust_accuracy']:.2f} at {r['epsilon_text']} ({suite(r)})",
            str(r["n"]),
            chosen_on(run, r),
        ]
        for r in run.reports
    ]
    return rows or [[NONE] * 3]


def last_epoch(run: Run) -> str:
    last = run.epochs[-1]
    figures = f"{last['student_clean']:.2f} / {last['student_robust']:.2f} at {format_epsilon(run.config['epsilon'])}"
    return f"{figures} ({last['robust_images']} {last['split']} images)"


def small_table(root: Path = ROOT) -> str:
    """Runs that reproduce no recipe: each with its last epoch and its AutoAttack reports."""
    recipes, rows = read_recipes(root), []
    for run in read_runs(root):
        name, config = run.folder.name, run.config
        if not run.epochs or is_quickstart(run) or (name in recipes and reproduces(run, recipes[name])):
            continue
        start = [
            link(run.folder, name, root),
            DATASETS.get(config["dataset"], config["dataset"]),
            network(config["student"]),
            f"{run.epochs[-1]['epoch']} of {config['limit_train'] or 'all'} images",
            last_epoch(run),
        ]
        rows += [[*start, *end, config["hardware"]] for end in attacked(run)]
    head = [
        "run", "data set", "student", "epochs", "clean / PGD-20 after the last", "clean / attacked", "images attacked",
        "epoch chosen on", "hardware",
    ]  # fmt: skip
    return table(head, rows) if rows else NO_RUNS


def is_quickstart(run: Run) -> bool:
    return run.folder.name.startswith("quickstart")


def quickstart_table(root: Path = ROOT) -> str:
    """What quickstart.sh left, and its naturally trained twin."""
    rows = [
        [link(run.folder, run.config["method"], root), *end, run.config["hardware"]]
        for run in read_runs(root)
        if is_quickstart(run)
        for end in attacked(run)
    ]
    head = ["trained by", "clean / attacked", "images attacked", "epoch chosen on", "hardware"]
    return table(head, rows) if rows else NO_RUNS


def speed_table(root: Path = ROOT) -> str:
    """Every file that benchmarks/train_step.py wrote under results/."""
    rows = []
    for path in sorted((root / "results").glob("**/*.json")):
        figures = json.loads(path.read_text())
        if not isinstance(figures, dict) or "fraction_of_peak" not in figures:
            continue
        a = figures["arguments"]
        rows.append([
            f"[{network(a['student'])}]({path.relative_to(root)})",
            f"{network(a['guide'])}",
            f"{a['batch_size']}",
            a["precision"],
            f"{figures['ratio']:.2f}",
            f"{figures['images_per_second']:.1f}",
            f"{figures['gflops_per_second']:.0f} ({figures['fraction_of_peak']:.0%})",
            f"{figures['peak_memory_mib']:.0f}",
            figures["hardware"],
        ])  # fmt: skip
    head = [
        "student", "guide", "batch", "precision", "times the reference's speed", "images/s", "GFLOP/s (of the peak)",
        "memory, MiB", "hardware",
    ]  # fmt: skip
    return table(head, rows) if rows else NO_RUNS


def others_table(root: Path = ROOT) -> str:
    """Published figures for which there is no recipe here."""
    rows = [
        [
            DATASETS[r["dataset"]],
            r["method"],
            r["architecture"],
            r["extra_data"] or NONE,
            f"{r['clean']} / {r['autoattack']} at {r['epsilon']}",
            r["source"],
        ]
        for r in read_published(root)
        if not r["recipe"]
    ]
    return table(["data set", "method", "network", "extra data", "published", "source"], rows)


def included(pattern: str, root: Path = ROOT) -> str:
    """What the benchmarks wrote as Markdown, each with a link to its folder."""
    parts = [
        f"{link(path.parent, path.parent.name, root)}: {path.read_text().strip()}"
        for path in sorted((root / "results").glob(pattern))
    ]
    return "\n\n".join(parts) or NO_RUNS


TABLES = {
    "results": results_table,
    "small": small_table,
    "quickstart": quickstart_table,
    "speed": speed_table,
    "others": others_table,
    "methods": partial(included, "*/methods.md"),
    "precision": partial(included, "*/precision.md"),
    "predictions": partial(included, "*/predictions.md"),
}


def build(text: str, root: Path = ROOT) -> str:
    """The README with every table between ``<!-- table:NAME -->`` and ``<!-- /table -->`` written anew.

    Raises:
        UserError: a marker names no table, or has no end.
    """
    names = re.findall(r"<!-- table:(\w+) -->", text)
    unknown = [name for name in names if name not in TABLES]
    if unknown or len(names) != text.count("<!-- /table -->"):
        raise UserError(
            f"README.md: unknown tables {unknown}, or markers without an end; known are {', '.join(TABLES)}"
        )
    return re.sub(
        r"<!-- table:(\w+) -->\n.*?<!-- /table -->",
        lambda found: f"<!-- table:{found[1]} -->\n{TABLES[found[1]](root=root)}\n<!-- /table -->",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if README.md is out of date")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    before = readme.read_text()
    after = build(before)
    if check and after != before:
        raise UserError("README.md is out of date: run python results/build_tables.py")
    if not check:
        readme.write_text(after)


if __name__ == "__main__":
    run_program(main)
