"""Does every method learn, and what does it cost? Each recipe script, scaled down to one epoch of wrn-10-1.

    python -m benchmarks.methods --out results/methods-cpu

Runs the scripts of sh/ one after another on CIFAR-100 (repeat an interrupted call to resume it), compares clean and
PGD-20 accuracy on test images with those of the untrained network, times a training step of each in turn with one of
AT, and writes methods.json and methods.md. Exits 1 if a method did not beat the untrained network.
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.measure import PeakMemory, alternate
from engine.config import TrainConfig
from engine.trainer import Trainer
from engine.validate import evaluate
from report.tables import markdown_table
from utils.device import choose_device, describe
from utils.errors import UserError, run_program
from utils.provenance import PROVENANCE, command

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {
    "lbgat0": "lbgat0_cifar100",
    **{name: f"{name}_cifar100_wrn34_10" for name in (
        "lbgat6", "trades6", "at", "mart6", "at_awp", "trades6_awp", "lbgat_awp_reconstruction",
        "lbgat_awp_star_reconstruction", "ikl", "gkl", "ikl_autoaugment", "bs10", "dajat",
    )},
    "natural": "natural_cifar100_resnet18",  # before hat, whose helper it is
    "hat": "hat_cifar100_resnet18",
    "free": "free_cifar10_preactresnet18",
    "free_authors": "free_cifar10_wrn34_10",
    "fgsm_rs": "fgsm_rs_cifar100_preactresnet18",
    "yopo5": "yopo5_cifar10_preactresnet18_yopo",
    "trades_yopo2": "trades_yopo2_cifar10_preactresnet18_yopo",
    "fat": "fat_cifar10_wrn34_10",
    "fat_trades6": "fat_trades6_cifar10_resnet18",
    "fat_mart6": "fat_mart6_cifar10_wrn34_10",
    "rice": "rice_cifar100_preactresnet18",
    "ates": "ates_cifar10_resnet18",
    "wa_trades6": "wa_trades6_cifar100_resnet18",
    "score4": "score4_cifar100_wrn28_10_swish",
}  # fmt: skip
# What a single epoch of 128 images a step needs besides.
BY_UPDATE = {"--schedule": "onecycle-updates", "--lr": 0.1}
FURTHER = {"wa_trades6": BY_UPDATE, "score4": BY_UPDATE}
ROUNDS = 5  # of timing


def train(recipe: str, args: argparse.Namespace) -> dict[str, Any]:
    """One script with the small sizes; its metrics after the epoch, and its configuration."""
    folder = args.out / "Logs" / recipe
    small = {
        "--dataset": "cifar100",
        "--student": "wrn-10-1",
        "--guide": "wrn-10-1",
        "--limit-train": args.limit_train,
        "--val-size": 0,
        "--batch-size": 128,
        "--epochs": 1,
        "--warmup-factor": 1,
        "--decay-epochs": "",
        "--decay-factors": "",
        "--awp-start-epoch": 1,
        "--eval-size": args.eval_size,
        "--data-dir": args.data_dir,
        "--device": args.device,
        "--mark": recipe,
        "--log-dir": args.out / "Logs",
        "--checkpoint-dir": args.out / "checkpoints",
        **FURTHER.get(recipe, {}),
    }
    if recipe == "hat":
        small["--guide-checkpoint"] = args.out / "checkpoints" / "natural" / "last.pt"
    flags = [str(part) for item in small.items() for part in item]
    script = ["bash", str(ROOT / "sh" / f"train_{RECIPES[recipe]}.sh"), *flags]
    if subprocess.run(script, cwd=ROOT).returncode:
        raise UserError(f"{recipe} failed: its output above says why")
    metrics = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {"metrics": metrics, "config": json.loads((folder / "config.json").read_text())}


def trainer_of(run: dict[str, Any]) -> Trainer:
    """The run before its first step."""
    settings = {name: value for name, value in run["config"].items() if name not in PROVENANCE}
    return Trainer(TrainConfig.create(**settings | {"resume": "none"}))


def cost(run: dict[str, Any], at: dict[str, Any]) -> dict[str, float]:
    """Seconds and memory of a step of the run, and their ratio to those of AT, measured in turn with it."""
    steps = {}
    for name, each in (("at", at), ("own", run)):
        trainer = trainer_of(each)
        batch, device = next(trainer.data.loader.epoch(1)), trainer.device
        trainer.objective.begin_epoch(1)
        steps[name] = lambda step=trainer.step, batch=batch: step(batch[:-1], batch[-1])
    seconds = alternate(steps, ROUNDS, device)
    memory = {}
    for name, step in steps.items():
        with PeakMemory(device) as peak:
            step()
        memory[name] = peak.mib
    own = statistics.median(seconds["own"])
    return {
        "seconds": own,
        "images_per_second": len(batch[-1]) / own,
        "updates": trainer.step.updates_per_batch,
        "times_at": own / statistics.median(seconds["at"]),
        "mib": memory["own"],
        "memory_at": memory["own"] / max(memory["at"], 1e-9),
    }


def untrained(run: dict[str, Any]) -> dict[str, float]:
    """What the run's network scores before its first step, on the same images at the same epsilon."""
    trainer = trainer_of(run)
    return evaluate(trainer.step.student, None, trainer.data.x_eval, trainer.data.y_eval, trainer.config)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    cells = []
    for recipe, row in rows.items():
        m, u = row["metrics"], row["untrained"]
        accuracies = [f"{figures[key]:.2f}" for figures in (m, u) for key in ("student_clean", "student_robust")]
        c = row["cost"]
        figures = [f"{c['seconds']:.3f}", f"{c['images_per_second']:.0f}", f"{c['times_at']:.2f}"]
        figures += [f"{c['times_at'] / c['updates']:.2f}", f"{c['memory_at']:.2f}"]
        cells.append([recipe, f"{row['config']['epsilon']:.4f}", f"{m['loss']:.3f}", *accuracies, *figures])
    head = [
        "recipe", "epsilon", "loss", "clean %", "PGD-20 %", "untrained: clean %", "PGD-20 %", "s a step", "images/s",
        "time / AT", "an update", "memory / AT",
    ]  # fmt: skip
    return markdown_table(head, cells) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-train", type=int, default=10_000)
    parser.add_argument("--eval-size", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows, at = {}, None
    for recipe in args.recipes.split(","):
        row = train(recipe, args)
        at = at or (row if recipe == "at" else train("at", args))
        rows[recipe] = {**row, "untrained": untrained(row), "cost": cost(row, at)}
    hardware = describe(choose_device(args.device))
    figures = {"hardware": hardware, "command": command(), "limit_train": args.limit_train, "rows": rows}
    (args.out / "methods.json").write_text(json.dumps(figures, indent=2) + "\n")
    text = (
        f"wrn-10-1 (guide wrn-10-1), one epoch of the first {args.limit_train:,} images of CIFAR-100, {hardware}; "
        f"clean on the whole test set, PGD-20 on its first {args.eval_size:,} images, after the last step. Steps of "
        "128 images, each timed in turn with one of AT (median); time and peak memory as a ratio to AT's.\n\n"
    )
    (args.out / "methods.md").write_text(text + table(rows))
    print(table(rows), end="")
    robust = {r: row for r, row in rows.items() if row["config"]["method"] != "natural"}
    behind = [r for r, row in robust.items() if row["metrics"]["student_robust"] <= row["untrained"]["student_robust"]]
    if behind:
        raise UserError(f"{', '.join(behind)}: no more robust under PGD-20 than the untrained network")


if __name__ == "__main__":
    run_program(main)
