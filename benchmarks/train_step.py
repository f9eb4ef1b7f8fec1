"""Time one LBGAT training step against a plain reference step, in one process, alternating; print their ratio.

python -m benchmarks.train_step --student wrn-16-2 --guide wrn-10-1 --batch-size 64
python -m benchmarks.train_step --student wrn-34-10 --precision bf16 --ablate --json step.json     (on a GPU)
"""

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torchvision import transforms

from attacks.pgd import AttackSpec, starting_point
from benchmarks.measure import PeakMemory, alternate, forward_gflop, lbgat_step_gflop, median_ratio, peak_gflops
from benchmarks.reference import ReferenceStep
from datasets.loader import Loader
from engine.steps import create_step
from engine.validate import pgd_accuracy
from losses import create_objective
from models import create_model
from models.accelerate import NO_ACCELERATION, AcceleratedModel, AccelerationConfig, choose_acceleration
from utils.device import choose_device, describe, set_precision
from utils.errors import UserError, run_program

ATTACK = AttackSpec(epsilon=0.031, step_size=0.007, num_steps=10)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="wrn-16-2")
    parser.add_argument("--guide", default="wrn-10-1")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--num-classes", type=int, default=100)
    parser.add_argument("--beta", type=float, default=6.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32", help="of our step")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--ablate", action="store_true", help="also time each optimization on its own")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    if args.batch_size < 1 or args.repeats < 1:
        raise UserError("--batch-size and --repeats must be at least 1")
    return args


class Bench:
    """Steps of one size, all from the same initial weights, on the same batch and noise."""

    def __init__(self, args: argparse.Namespace, device: torch.device):
        self.args, self.device = args, device
        generator = torch.Generator(device).manual_seed(0)
        shape = (args.batch_size, 3, args.image_size, args.image_size)
        self.x = torch.rand(shape, generator=generator, device=device)
        self.y = torch.randint(args.num_classes, (args.batch_size,), generator=generator, device=device)
        self.start = starting_point(self.x, ATTACK, generator)

    def _networks(self, fused: bool) -> tuple[torch.nn.Module, torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        student, guide = (
            create_model(name, self.args.num_classes).to(self.device) for name in (self.args.student, self.args.guide)
        )
        optimizer = torch.optim.SGD(
            [*student.parameters(), *guide.parameters()], lr=0.1, momentum=0.9, weight_decay=2e-4, fused=fused or None
        )
        return student, guide, optimizer

    def reference(self, channels_last: bool = False, **options: bool) -> Callable[[], object]:
        student, guide, optimizer = self._networks(fused=False)
        step = ReferenceStep(student, guide, optimizer, self.args.beta, **options)
        x = self.x
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
            student.to(memory_format=torch.channels_last)
            guide.to(memory_format=torch.channels_last)

        def run() -> object:
            set_precision("fp32", self.device)
            return step(x, self.y, self.start)

        return run

    def ours(self, acceleration: AccelerationConfig, precision: str, fused: bool = True) -> Callable[[], object]:
        student, guide, optimizer = self._networks(fused)
        autocast = set_precision(precision, self.device)
        objective = create_objective("lbgat", beta=self.args.beta)
        step = create_step(student, guide, objective, optimizer, ATTACK, autocast=autocast, acceleration=acceleration)
        generator = torch.Generator(self.device)

        def run() -> object:
            set_precision(precision, self.device)
            return step([self.x], self.y, generator.manual_seed(0))

        return run

    def ablations(self) -> dict[str, Callable[[], Callable[[], object]]]:
        """Each optimization alone, and all but one: makers of a step, so that only one at a time holds memory."""
        best = choose_acceleration(self.device, self.args.compile, self.args.batch_size)
        rows = {
            "clean logits once": lambda: self.reference(clean_once=True),
            "frozen parameters": lambda: self.reference(frozen=True),
            "channels_last": lambda: self.reference(channels_last=True),
            "our step, no acceleration": lambda: self.ours(NO_ACCELERATION, "fp32", fused=False),
        }
        alone = {
            "channels_last": ({"channels_last": True}, {"channels_last": False}),
            "folded BatchNorm": ({"fold": True}, {"fold": False}),
        }
        if best.compile_batch_size:
            alone["compile"] = ({"compile_batch_size": best.compile_batch_size}, {"compile_batch_size": 0})
        if best.cuda_graphs:
            graphs = {"compile_batch_size": best.compile_batch_size, "cuda_graphs": True}
            alone["compile, CUDA graphs"] = (graphs, {"cuda_graphs": False})
        for name, (on, _) in alone.items():
            rows[f"  + {name}"] = lambda on=on: self.ours(replace(NO_ACCELERATION, **on), "fp32", fused=False)
        rows["  + fused SGD"] = lambda: self.ours(NO_ACCELERATION, "fp32", fused=True)
        precisions = ("bf16",) if self.device.type == "cpu" else ("tf32", "bf16")
        for precision in precisions:
            rows[f"  + {precision}"] = lambda precision=precision: self.ours(NO_ACCELERATION, precision, fused=False)
        rows["all"] = lambda: self.ours(best, "fp32")
        for name, (_, off) in alone.items():
            rows[f"  - {name.split(', ')[-1]} (all)"] = lambda off=off: self.ours(replace(best, **off), "fp32")
        rows["  - fused SGD (all)"] = lambda: self.ours(best, "fp32", fused=False)
        for precision in precisions:
            rows[f"all + {precision}"] = lambda precision=precision: self.ours(best, precision)
        return rows


def measure(args: argparse.Namespace) -> dict[str, object]:
    """All figures of one configuration."""
    device = choose_device(args.device)
    bench = Bench(args, device)
    acceleration = choose_acceleration(device, args.compile, args.batch_size)
    reference, ours = bench.reference(), bench.ours(acceleration, args.precision)

    memory = {}
    for name, run in (("reference", reference), ("ours", ours)):
        run()
        with PeakMemory(device) as peak:
            run()
        memory[name] = peak.mib
    seconds = alternate({"reference": reference, "ours": ours}, args.repeats, device)
    ratio, median = median_ratio(seconds["reference"], seconds["ours"]), statistics.median(seconds["ours"])

    gflop = lbgat_step_gflop(
        forward_gflop(args.student, args.num_classes, args.image_size),
        forward_gflop(args.guide, args.num_classes, args.image_size),
        ATTACK.num_steps,
        args.beta,
    )
    set_precision(args.precision, device)
    peak_rate = peak_gflops(device, args.precision)
    rate = gflop * args.batch_size / median
    figures: dict[str, object] = {
        "ratio": ratio,
        "images_per_second": args.batch_size / median,
        "gflop_per_image": gflop,
        "gflops_per_second": rate,
        "peak_gflops_per_second": peak_rate,
        "fraction_of_peak": rate / peak_rate,
        "peak_memory_mib": memory["ours"],
        "reference_peak_memory_mib": memory["reference"],
        "seconds": seconds,
        "hardware": describe(device),
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
    }
    write(figures, args.json)
    if args.ablate:
        figures["ablation"] = {}
        for name, row in ablate(bench, reference, args.repeats, device):
            figures["ablation"][name] = row
            write(figures, args.json)
        figures["beside_the_step"] = {
            "PGD-20 evaluation": compare_evaluation(bench, acceleration, args.precision),
            "making a batch": compare_batches(bench),
        }
        write(figures, args.json)
    return figures


def write(figures: dict[str, object], path: Path | None) -> None:
    """Write the file of --json, if there is one: after every row, so that an interrupted run keeps its rows."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=2) + "\n")


def compare_evaluation(bench: Bench, acceleration: AccelerationConfig, precision: str) -> dict[str, float]:
    """PGD-20 on one batch: plain forward passes against ours."""
    images, runs = (bench.x * 255).to(torch.uint8), {}
    for name, chosen, arithmetic in (("reference", NO_ACCELERATION, "fp32"), ("ours", acceleration, precision)):
        torch.manual_seed(0)
        model = create_model(bench.args.student, bench.args.num_classes).to(bench.device)
        network = AcceleratedModel(model, chosen, set_precision(arithmetic, bench.device))
        runs[name] = partial(pgd_accuracy, network, images, bench.y, ATTACK.epsilon)
    seconds = alternate(runs, bench.args.repeats, bench.device)
    ours = statistics.median(seconds["ours"])
    return {"ratio": median_ratio(seconds["reference"], seconds["ours"]), "images_per_second": len(images) / ours}


def compare_batches(bench: Bench) -> dict[str, float]:
    """Crop, flip and conversion of one batch: torchvision's transforms image by image against ours on the device."""
    transform = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomCrop(bench.args.image_size, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
    )
    images = (bench.x * 255).to(torch.uint8)
    on_host = images.cpu()
    loader = Loader(images, bench.y, bench.args.batch_size, seed=0)
    runs = {
        "reference": lambda: torch.stack([transform(image) for image in on_host]).to(bench.device),
        "ours": lambda: next(loader.epoch(1)),
    }
    seconds = alternate(runs, bench.args.repeats, bench.device)
    ours = statistics.median(seconds["ours"])
    return {"ratio": median_ratio(seconds["reference"], seconds["ours"]), "images_per_second": len(images) / ours}


def ablate(
    bench: Bench, reference: Callable[[], object], repeats: int, device: torch.device
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each optimization against the reference, in turns of two, row by row."""
    for name, make in bench.ablations().items():
        seconds = alternate({"reference": reference, "row": make()}, repeats, device)
        ratio = median_ratio(seconds["reference"], seconds["row"])
        yield name, {"ratio": ratio, "seconds": statistics.median(seconds["row"])}
        gc.collect()


def report(figures: dict[str, object]) -> str:
    """The figures as a few lines of text."""
    a, seconds = figures["arguments"], figures["seconds"]
    lines = [
        f"{a['student']}, guide {a['guide']}, batch {a['batch_size']}, beta {a['beta']:g}, {figures['hardware']}",
        f"reference step  {statistics.median(seconds['reference']):9.4f} s   fp32, "
        f"peak memory {figures['reference_peak_memory_mib']:.0f} MiB",
        f"our step        {statistics.median(seconds['ours']):9.4f} s   {a['precision']}, "
        f"peak memory {figures['peak_memory_mib']:.0f} MiB",
        f"ratio {figures['ratio']:.2f}   {figures['images_per_second']:.1f} images/s   "
        f"{figures['gflops_per_second']:.0f} GFLOP/s = {figures['fraction_of_peak']:.0%} of the measured peak "
        f"{figures['peak_gflops_per_second']:.0f} ({a['precision']} matrix product)",
    ]
    for name, row in figures.get("ablation", {}).items():
        lines.append(f"  {name:32s} {row['seconds']:9.4f} s   x{row['ratio']:.2f}")
    for name, row in figures.get("beside_the_step", {}).items():
        lines.append(f"  {name:32s} {row['images_per_second']:9.0f} images/s   x{row['ratio']:.2f}")
    return "\n".join(lines)


def main() -> None:
    print(report(measure(parse())))


if __name__ == "__main__":
    run_program(main)
