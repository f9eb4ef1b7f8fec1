"""Does every method learn? Each recipe script for CIFAR-100, scaled down by further flags to one epoch of wrn-10-1.

    python -m benchmarks.methods --out results/methods-cpu

Runs sh/train_*_cifar100.sh one after another (repeat an interrupted call to resume it), compares clean and PGD-20
accuracy on test images with those of the untrained network, and writes methods.json and methods.md. Exits 1 if a
method did not beat it.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine.config import TrainConfig
from engine.trainer import Trainer
from engine.validate import evaluate
from report.tables import markdown_table
from utils.device import choose_device, describe
from utils.errors import UserError, run_program
from utils.provenance import PROVENANCE

ROOT = Path(__file__).resolve().parent.parent
RECIPES = (
    "lbgat0", "lbgat6", "trades6", "at", "mart6", "at_awp", "trades6_awp", "lbgat_awp_reconstruction",
    "lbgat_awp_star_reconstruction", "ikl", "gkl", "ikl_autoaugment",
)  # fmt: skip


def train(recipe: str, args: argparse.Namespace) -> dict[str, Any]:
    """One script with the small sizes; its metrics after the epoch, and its configuration."""
    folder = args.out / "Logs" / recipe
    small = {
        "--student": "wrn-10-1",
        "--guide": "wrn-10-1",
        "--limit-train": args.limit_train,
        "--epochs": 1,
        "--warmup-factor": 1,
        "--awp-start-epoch": 1,
        "--eval-size": args.eval_size,
        "--data-dir": args.data_dir,
        "--device": args.device,
        "--mark": recipe,
        "--log-dir": args.out / "Logs",
        "--checkpoint-dir": args.out / "checkpoints",
    }
    flags = [str(part) for item in small.items() for part in item]
    name = f"train_{recipe}_cifar100.sh" if recipe == "lbgat0" else f"train_{recipe}_cifar100_wrn34_10.sh"
    script = ["bash", str(ROOT / "sh" / name), *flags]
    if subprocess.run(script, cwd=ROOT).returncode:
        raise UserError(f"{recipe} failed: its output above says why")
    metrics = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return {"metrics": metrics, "config": json.loads((folder / "config.json").read_text())}


def untrained(run: dict[str, Any]) -> dict[str, float]:
    """What the run's network scores before its first step, on the same images at the same epsilon."""
    settings = {name: value for name, value in run["config"].items() if name not in PROVENANCE}
    config = TrainConfig.create(**settings | {"resume": "none"})
    trainer = Trainer(config)
    return evaluate(trainer.step.student, None, trainer.data.x_eval, trainer.data.y_eval, config)


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    cells = []
    for recipe, row in rows.items():
        m, u = row["metrics"], row["untrained"]
        accuracies = [f"{figures[key]:.2f}" for figures in (m, u) for key in ("student_clean", "student_robust")]
        cells.append([recipe, f"{row['config']['epsilon']:.4f}", f"{m['loss']:.3f}", *accuracies])
    head = ["recipe", "epsilon", "loss", "clean %", "PGD-20 %", "untrained: clean %", "PGD-20 %"]
    return markdown_table(head, cells) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-train", type=int, default=20_000)
    parser.add_argument("--eval-size", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = {}
    for recipe in args.recipes.split(","):
        row = train(recipe, args)
        rows[recipe] = {**row, "untrained": untrained(row)}
    hardware = describe(choose_device(args.device))
    figures = {"hardware": hardware, "command": sys.argv, "limit_train": args.limit_train, "rows": rows}
    (args.out / "methods.json").write_text(json.dumps(figures, indent=2) + "\n")
    text = (
        f"wrn-10-1 (guide wrn-10-1), one epoch of the first {args.limit_train:,} images of CIFAR-100, {hardware}; "
        f"clean on the whole test set, PGD-20 on its first {args.eval_size:,} images, after the last step.\n\n"
    )
    (args.out / "methods.md").write_text(text + table(rows))
    print(table(rows), end="")
    behind = [r for r, row in rows.items() if row["metrics"]["student_robust"] <= row["untrained"]["student_robust"]]
    if behind:
        raise UserError(f"{', '.join(behind)}: no more robust under PGD-20 than the untrained network")


if __name__ == "__main__":
    run_program(main)
