"""How the cost of a training step grows with width, depth, batch, attack steps and number of images, and what that
means for the published recipes: scaling.json, scaling.png and predictions.md in one folder.

    python -m benchmarks.scaling --out results/scaling-cpu
    python -m benchmarks.scaling --precision bf16 --widths 2,5,10 --out results/scaling-h100              (on a GPU)

Predictions are GFLOP of the recipe divided by GFLOP/s: of the device that runs this, as measured here at its largest
network, and of any other for which --rate NAME=GFLOPS gives a measured or assumed figure.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from attacks.pgd import AttackSpec
from benchmarks import cost
from benchmarks.measure import alternate, forward_gflop, lbgat_step_gflop
from datasets.loader import Loader
from engine.command_line import parse_train
from engine.steps import create_step
from losses import create_objective
from models import create_model
from models.accelerate import choose_acceleration
from report.tables import markdown_table
from utils.device import choose_device, describe, set_precision
from utils.errors import UserError, run_program

RECIPES = {
    "LBGAT0, WRN-34-10": "--method lbgat --beta 0",
    "LBGAT6, WRN-34-10": "--method lbgat --beta 6",
    "LBGAT6, WRN-34-20": "--method lbgat --beta 6 --student wrn-34-20",
    "TRADES6, WRN-34-10": "--method trades --beta 6",
    "AT, WRN-34-10": "--method at",
    "MART, WRN-34-10": "--method mart",
    "IKL-AT, WRN-34-10": "--method ikl --num-steps 5 --awp-gamma 0.005",
    "TRADES-AWP, WRN-34-10": "--method trades --awp-gamma 0.005",
    "LBGAT6, ResNet-18": "--method lbgat --beta 6 --student resnet18",
}


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--depths", type=numbers, default=[10, 16, 22], help="of wrn-D-1")
    parser.add_argument("--widths", type=numbers, default=[1, 2, 4], help="of wrn-10-K")
    parser.add_argument("--batches", type=numbers, default=[16, 32, 64, 128])
    parser.add_argument("--attack-steps", type=numbers, default=[1, 5, 10, 20])
    parser.add_argument("--images", type=numbers, default=[128, 256, 512], help="of one epoch")
    parser.add_argument("--batch-size", type=int, default=64, help="where the batch is not what varies")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", action="append", default=[], metavar="NAME=GFLOPS", help="another device's rate")
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    return parser.parse_args(argv)


class Scaling:
    """Measures one step of LBGAT6 with a wrn-10-1 guide in different sizes."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.device = args, choose_device(args.device)

    def seconds(self, student: str, batch: int, steps: int) -> float:
        """Median seconds of one training step."""
        torch.manual_seed(0)
        nets = [create_model(name, 100).to(self.device) for name in (student, "wrn-10-1")]
        optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], lr=0.01, momentum=0.9, fused=True)
        attack = AttackSpec(0.031, 0.007, steps)
        autocast = set_precision(self.args.precision, self.device)
        step = create_step(
            *nets,
            create_objective("lbgat"),
            optimizer,
            attack,
            autocast=autocast,
            acceleration=choose_acceleration(self.device, "auto", batch),
        )
        x = torch.rand(batch, 3, 32, 32, device=self.device)
        y = torch.randint(100, (batch,), device=self.device)
        return statistics.median(alternate({"step": lambda: step([x], y)}, self.args.repeats, self.device)["step"])

    def row(self, value: int, student: str, batch: int, steps: int) -> dict[str, float]:
        gflop = lbgat_step_gflop(forward_gflop(student, 100, 32), forward_gflop("wrn-10-1", 100, 32), steps, 6.0)
        seconds = self.seconds(student, batch, steps)
        return {
            "value": value,
            "milliseconds_per_image": 1e3 * seconds / batch,
            "gflop_per_image": gflop,
            "gflops_per_second": gflop * batch / seconds,
        }

    def epoch(self, images: int) -> dict[str, float]:
        """Seconds of fetching, cropping and flipping one epoch's batches, per image."""
        data = torch.zeros(images, 3, 32, 32, dtype=torch.uint8, device=self.device)
        loader = Loader(data, torch.zeros(images, dtype=torch.int64, device=self.device), self.args.batch_size, seed=0)
        seconds = alternate({"epoch": lambda: list(loader.epoch(1))}, self.args.repeats, self.device)["epoch"]
        return {"value": images, "milliseconds_per_image": 1e3 * statistics.median(seconds) / images}

    def measure(self) -> dict[str, list[dict[str, float]]]:
        """The curves, by what varies."""
        a = self.args
        return {
            "width K of wrn-10-K": [self.row(k, f"wrn-10-{k}", a.batch_size, 10) for k in a.widths],
            "depth D of wrn-D-1": [self.row(d, f"wrn-{d}-1", a.batch_size, 10) for d in a.depths],
            "batch size, wrn-10-1": [self.row(b, "wrn-10-1", b, 10) for b in a.batches],
            "attack steps, wrn-10-1": [self.row(s, "wrn-10-1", a.batch_size, s) for s in a.attack_steps],
            "images in an epoch, data alone": [self.epoch(n) for n in a.images],
        }


def predictions(rates: dict[str, float]) -> list[dict[str, Any]]:
    """Hours of 100 epochs of CIFAR-100 by recipe and device, from GFLOP/s."""
    rows = []
    for name, flags in RECIPES.items():
        config = parse_train(f"--dataset cifar100 {flags}".split())
        gflop = cost.step_gflop(dataclasses.replace(config, epochs=100))
        hours = {device: 50_000 * 100 * gflop / rate / 3600 for device, rate in rates.items()}
        rows.append({"recipe": name, "gflop_per_image": gflop, "hours": hours})
    return rows


def markdown(rows: list[dict[str, Any]], rates: dict[str, float]) -> str:
    """The predictions as a table."""
    devices = [f"{device}, {rate:,.0f} GFLOP/s" for device, rate in rates.items()]
    cells = [
        [row["recipe"], f"{row['gflop_per_image']:.0f}", *[f"{hours:,.1f} h" for hours in row["hours"].values()]]
        for row in rows
    ]
    table = markdown_table(["recipe, 100 epochs of CIFAR-100", "GFLOP per image", *devices], cells)
    return f"hours of training, without evaluations.\n\n{table}\n"


def plot(curves: dict[str, list[dict[str, float]]], hardware: str, path: Path) -> None:
    """Measured time per image against each size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, curves.items(), strict=True):
        values = [row["value"] for row in rows]
        axes.plot(values, [row["milliseconds_per_image"] for row in rows], "o-")
        axes.set(xlabel=name, xticks=values, ylim=(0, None))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("ms per image")
    figure.suptitle(f"LBGAT6 training step, guide wrn-10-1: {hardware}", fontsize=10)
    figure.savefig(path, dpi=110)


def main() -> None:
    args = parse()
    scaling = Scaling(args)
    curves = scaling.measure()
    best = max(row["gflops_per_second"] for rows in curves.values() for row in rows if "gflops_per_second" in row)
    hardware = describe(scaling.device).split(", torch")[0]
    rates = {f"{hardware} in {args.precision}, measured": best}
    for text in args.rate:
        name, _, rate = text.partition("=")
        try:
            rates[name] = float(rate)
        except ValueError as error:
            raise UserError(f"--rate {text}: write NAME=GFLOPS, such as 'H100, assumed=250000'") from error
    rows = predictions(rates)
    args.out.mkdir(parents=True, exist_ok=True)
    figures = {"hardware": describe(scaling.device), "command": sys.argv, "curves": curves, "predictions": rows}
    (args.out / "scaling.json").write_text(json.dumps(figures, indent=2) + "\n")
    (args.out / "predictions.md").write_text(markdown(rows, rates))
    try:
        plot(curves, describe(scaling.device), args.out / "scaling.png")
    except ImportError:
        print("scaling.png is not drawn: matplotlib is not installed (pip install matplotlib)")
    for name, points in curves.items():
        print(name + ": " + ", ".join(f"{p['value']}: {p['milliseconds_per_image']:.3f} ms" for p in points))
    print(markdown(rows, rates), end="")


if __name__ == "__main__":
    run_program(main)
