"""Everything that the tables are made of: the recipes in sh/, published.csv, and the runs in results/."""

import csv
import json
import re
import shlex
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.command_line import parse_train
from engine.config import TrainConfig
from losses import find_method
from utils.errors import UserError
from utils.files import read_metrics

ROOT = Path(__file__).resolve().parent.parent
NOT_PART_OF_A_RECIPE = {
    "checkpoint_dir", "compile", "data_dir", "deterministic", "device", "eval_size", "extra_data", "log_dir",
    "log_interval", "mark", "max_minutes", "patience", "precision", "resume", "save_freq", "seed", "tensorboard",
    "val_size",
}  # fmt: skip
NAMES = {
    "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "resnet18": "ResNet-18", "resnet18-guide": "ResNet-18 (guide)",
    "preactresnet18": "PreActResNet-18", "preactresnet18-yopo": "PreActResNet-18-YOPO", "resnet50": "ResNet-50",
}  # fmt: skip
TITLE = re.compile(r"# (?P<method>.+?) \(.+?\): (?P<dataset>\S+), (?P<network>\S+); .+\.")


def display(name: str) -> str:
    """``wrn-34-10`` -> ``WRN-34-10``, ``cifar10`` -> ``CIFAR-10``."""
    return NAMES.get(name, name.upper().replace("-SWISH", "") if name.startswith("wrn") else name)


@dataclass(frozen=True)
class Recipe:
    """What a script of sh/ trains.

    Attributes:
        script: its path.
        method: the method as its title names it, which is its name in published.csv too.
        flags: the command line that it passes to train_lbgat.py.
    """

    script: Path
    method: str
    flags: list[str]

    @cached_property
    def config(self) -> TrainConfig:
        return parse_train(self.flags)

    @property
    def name(self) -> str:
        return self.config.mark

    def publishes(self, row: dict[str, str]) -> bool:
        """Whether a row of published.csv is of this recipe: same method, data set and network, no extra data."""
        return not row["extra_data"] and (row["dataset"], row["method"], row["architecture"]) == (
            self.config.dataset,
            self.method,
            display(self.config.student),
        )


@dataclass(frozen=True)
class Run:
    """One folder under results/: its settings, its epochs, and its AutoAttack reports in ascending epsilon."""

    folder: Path
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    reports: list[dict[str, Any]]

    def reproduces(self, recipe: Recipe) -> bool:
        """Whether the run bears the recipe's name and its settings are the recipe's, in all that is part of one."""
        settings = json.loads(json.dumps(recipe.config.as_dict()))
        compared = settings.keys() - NOT_PART_OF_A_RECIPE
        # A setting that did not exist when the run was made was as its default is now.
        then = json.loads(json.dumps({f.name: f.default for f in fields(TrainConfig)}, default=str))
        then |= find_method(self.config["method"]).complete({}) | self.config
        return self.folder.name == recipe.name and all(then.get(key) == settings[key] for key in compared)


@dataclass(frozen=True)
class Records:
    """The contents of a repository, by its root."""

    root: Path = ROOT

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        """By name, those with published figures first, in the order of published.csv."""
        scripts = sorted(set((self.root / "sh").glob("train_*.sh")) - {self.root / "sh/train_slurm.sh"})
        recipes = [read_recipe(script) for script in scripts]
        rank = {recipe.name: i for i, row in enumerate(self.published) for recipe in recipes if recipe.publishes(row)}
        recipes.sort(key=lambda recipe: (rank.get(recipe.name, len(self.published)), recipe.name))
        return {recipe.name: recipe for recipe in recipes}

    @cached_property
    def published(self) -> list[dict[str, str]]:
        with open(self.root / "results" / "published.csv", newline="") as file:
            return list(csv.DictReader(file))

    @cached_property
    def runs(self) -> dict[str, Run]:
        """By name, every folder under results/ that holds a config.json."""
        folders = sorted(path.parent for path in (self.root / "results").glob("*/config.json"))
        return {folder.name: read_run(folder) for folder in folders}

    def published_row(self, recipe: Recipe) -> dict[str, str] | None:
        return next((row for row in self.published if recipe.publishes(row)), None)

    def reproduction(self, recipe: Recipe) -> Run | None:
        """The run of this recipe, if there is one with AutoAttack figures."""
        run = self.runs.get(recipe.name)
        return run if run and run.reports and run.reproduces(recipe) else None

    def json_files(self, pattern: str) -> dict[Path, Any]:
        """The JSON files under results/ that match, by path."""
        return {path: json.loads(path.read_text()) for path in sorted((self.root / "results").glob(pattern))}


def read_recipe(script: Path) -> Recipe:
    """Read a script of sh/: the title in its second line and the flags that it passes on.

    Raises:
        UserError: it has no title, or does not end with the user's flags.
    """
    text = script.read_text()
    title = TITLE.fullmatch(text.splitlines()[1])
    *flags, rest = shlex.split(text.split("train_lbgat.py", 1)[1].replace("\\\n", " "))
    if title is None:
        raise UserError(f"{script}: line 2 is no title: write # METHOD (PAPER): DATA SET, NETWORK; SETTINGS.")
    if rest != "$@":
        raise UserError(f'{script} does not pass on the user\'s flags: end its command with "$@"')
    return Recipe(script, title["method"], flags)


def finished_epochs(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a finished run's metrics.jsonl.

    Raises:
        UserError: epochs are missing.
    """
    epochs = read_metrics(folder / "metrics.jsonl")
    if len(epochs) != config["epochs"]:
        raise UserError(f"{folder} has {len(epochs)} of {config['epochs']} epochs: run the script again, which resumes")
    return epochs


def read_run(folder: Path) -> Run:
    metrics = folder / "metrics.jsonl"
    epochs = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("autoattack*.json"))]
    reports.sort(key=lambda report: report["epsilon"])
    return Run(folder, json.loads((folder / "config.json").read_text()), epochs, reports)
