"""Is bf16 statistically the same training as fp32? The same small run with several seeds in each precision.

    python -m benchmarks.precision --seeds 1,2,3 --out results/precision-cpu

Trains LBGAT6 on real CIFAR-100 (``--data-dir``), wrn-10-1 for both nets, batch 32, one-cycle schedule, on the first
``--limit-train`` images, measures clean and PGD-20 accuracy on the test set after the last epoch (nothing is chosen on
it), and writes precision.json, precision.md and precision.png. Repeat an interrupted call to resume it.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.scaling import numbers
from engine.config import TrainConfig
from engine.trainer import Trainer
from report.tables import markdown_table
from utils.device import choose_device, describe
from utils.errors import run_program

FIGURES = {"student_clean": "clean", "student_robust": "PGD-20"}


def train(args: argparse.Namespace, precision: str, seed: int) -> dict[str, Any]:
    """One run; its metrics after the last epoch."""
    config = TrainConfig(
        dataset="cifar100",
        data_dir=args.data_dir,
        student="wrn-10-1",
        guide="wrn-10-1",
        limit_train=args.limit_train,
        epochs=args.epochs,
        schedule="onecycle",
        batch_size=32,  # many steps from few images
        eval_size=args.eval_size,
        precision=precision,
        device=args.device,
        seed=seed,
        mark=f"precision-{precision}-seed{seed}",
        log_dir=str(args.out / "Logs"),
        checkpoint_dir=str(args.out / "checkpoints"),
    )
    Trainer(config).fit()
    lines = (args.out / "Logs" / config.mark / "metrics.jsonl").read_text().splitlines()
    return json.loads(lines[-1])


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """For each figure: the means, the spread over the seeds of all runs, and the difference in units of it."""
    result = {}
    for key in FIGURES:
        fp32, bf16 = ([run[key] for run in runs[p]] for p in ("fp32", "bf16"))
        spread = max(max(fp32) - min(fp32), max(bf16) - min(bf16))
        difference = statistics.mean(bf16) - statistics.mean(fp32)
        result[key] = {
            "fp32_mean": statistics.mean(fp32),
            "bf16_mean": statistics.mean(bf16),
            "difference": difference,
            "spread_of_seeds": spread,
            "within_spread": abs(difference) <= spread,
        }
    return result


def markdown(rows: dict[str, dict[str, float]], args: argparse.Namespace, hardware: str) -> str:
    """The summary as a sentence and a table."""
    sentence = (
        f"LBGAT6, wrn-10-1 for both nets, {args.epochs} epochs of {args.limit_train:,} CIFAR-100 images, seeds "
        f"{', '.join(map(str, args.seeds))}, {hardware}; clean on the whole test set, PGD-20 at epsilon 0.031 on its "
        f"first {args.eval_size:,} images, after the last epoch."
    )
    cells = [
        [
            FIGURES[key],
            f"{row['fp32_mean']:.2f}%",
            f"{row['bf16_mean']:.2f}%",
            f"{row['difference']:+.2f}",
            f"{row['spread_of_seeds']:.2f}",
        ]
        for key, row in rows.items()
    ]
    head = ["accuracy", "fp32, mean", "bf16, mean", "difference", "spread of the seeds"]
    return f"{sentence}\n\n{markdown_table(head, cells)}\n"


def plot(runs: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """A dot for each run, precision against accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (key, name) in zip(panels, FIGURES.items(), strict=True):
        for x, (precision, results) in enumerate(runs.items()):
            values = [run[key] for run in results]
            axes.plot([x] * len(values), values, "o", label=precision)
            axes.plot([x - 0.15, x + 0.15], [statistics.mean(values)] * 2, "k-")
        axes.set(xticks=range(len(runs)), xticklabels=list(runs), xlim=(-0.5, len(runs) - 0.5))
        axes.set_title(f"{name} accuracy, %; bar: mean")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=numbers, default=[1, 2, 3])
    parser.add_argument("--limit-train", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--eval-size", type=int, default=1000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    runs = {p: [train(args, p, seed) for seed in args.seeds] for p in ("fp32", "bf16")}
    hardware = describe(choose_device(args.device))
    if not torch.cuda.is_available() and Path("/proc/cpuinfo").exists():
        native = "avx512_bf16" in Path("/proc/cpuinfo").read_text()
        hardware += f", bf16 products {'in hardware' if native else 'emulated'}"
    figures = {"summary": summary(runs), "runs": runs, "hardware": hardware, "command": sys.argv}
    (args.out / "precision.json").write_text(json.dumps(figures, indent=2) + "\n")
    plot(
        runs, f"LBGAT6, wrn-10-1, {args.limit_train} CIFAR-100 images, {args.epochs} epochs", args.out / "precision.png"
    )
    text = markdown(figures["summary"], args, hardware)
    (args.out / "precision.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    run_program(main)
