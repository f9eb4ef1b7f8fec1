#!/usr/bin/env python3
"""How long AutoAttack takes: the authors' front end against ours, on the same images, chunks and seed.

    python -m benchmarks.autoattack --checkpoint FILE --dataset cifar100 --n 200 --out results/autoattack-cpu
    python -m benchmarks.autoattack --checkpoint FILE --n 1000 --precision tf32 --out results/autoattack-h100

The front end gets the network as its README has it: in eval mode, nothing frozen. fp32 is IEEE float32 for both; with
tf32 or bf16 the front end runs with TF32 on. Chunk by chunk, first the front end, then ours, after a warm-up of both.
Writes autoattack.json each time one of them has finished a chunk, and autoattack.md at the end.
"""

import argparse
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pyautoattack
import torch
from torch import Tensor, nn

from benchmarks.measure import synchronize
from datasets.loader import to_device, to_float
from evaluation.attack_loop import attack_chunk
from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.early_exit import margin
from evaluation.autoattack.suite import LOGGER, SUITE_NORMS, SUITES, Suite
from evaluation.config import EvalConfig
from evaluation.target import load_data, load_network
from report.tables import markdown_table
from utils.device import choose_device, describe, ieee_products
from utils.errors import run_program
from utils.options import parse_epsilon

PARTS = ("forward", "backward", "FAB's projections", "the suite's checks")
REST = "the attack's own arithmetic"
WARM_UP = 16  # images


class Stopwatch:
    """Seconds in parts of the program; a part inside another counts to the outer one."""

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.running = device, Counter(), False

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its seconds counted."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                return function(*args, **kwargs)
            self.running = True
            synchronize(self.device)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(self.device)
                self.seconds[part] += time.perf_counter() - began
                self.running = False

        return run

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time the network, the gradients and the suite's projections and checks, within the block."""
        checks = [name for name in vars(pyautoattack.checks) if name.startswith("check_")]
        projections = ("projection_linf", "projection_l2")
        targets = [("forward", AttackedModel, "forward")]
        targets += [("backward", torch.autograd, name) for name in ("grad", "backward")]
        targets += [("FAB's projections", pyautoattack.fab_base, name) for name in projections]
        targets += [("the suite's checks", pyautoattack.checks, name) for name in checks]
        with ExitStack() as stack:
            for part, owner, name in targets:
                stack.enter_context(mock.patch.object(owner, name, self.timed(part, getattr(owner, name))))
            yield


class Beginnings(logging.Handler):
    """When each attack of the front end began, from its log."""

    def __init__(self, device: torch.device):
        super().__init__(logging.DEBUG)
        self.device, self.times = device, {"clean": time.perf_counter()}

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("running "):
            synchronize(self.device)
            self.times[record.getMessage().removeprefix("running ")] = time.perf_counter()


def run_front_end(model: nn.Module, suite: Suite, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Seconds of each attack, images forwarded, adversarial images and their predictions."""
    rows, cpu_began = 0, time.process_time()

    def count(module: nn.Module, inputs: tuple[Tensor]) -> None:
        nonlocal rows
        rows += len(inputs[0])

    hook, clock = model.register_forward_pre_hook(count), Beginnings(suite.device)
    LOGGER.addHandler(clock)
    try:
        version = "standard" if suite.version == "dev" else suite.version
        front_end = pyautoattack.AutoAttack(
            model,
            norm=SUITE_NORMS[suite.norm],
            eps=suite.epsilon,
            seed=suite.seed,
            version=version,
            device=suite.device,
        )
        front_end.attacks_to_run = list(suite.attacks)
        x_adv, prediction = front_end.run_standard_evaluation(x, y, batch_size=len(x))
        synchronize(suite.device)
    finally:
        hook.remove()
        LOGGER.removeHandler(clock)
    times = [*clock.times.values(), time.perf_counter()]
    seconds = {name: end - began for name, began, end in zip(clock.times, times[:-1], times[1:], strict=True)}
    counts = {"seconds": seconds, "cpu_seconds": time.process_time() - cpu_began, "rows": rows}
    return {"counts": counts, "x_adv": x_adv, "prediction": prediction}


def run_ours(model: AttackedModel, suite: Suite, x: Tensor, y: Tensor, stopwatch: Stopwatch) -> dict[str, Any]:
    """As ``run_front_end``, and the parts of each attack's seconds."""
    seconds, profile, x_adv = {}, {}, x.clone()
    forwarded, cpu_began = model.num_forwarded, time.process_time()
    stopwatch.seconds.clear()
    with stopwatch.timing():
        for step in attack_chunk(model, suite, x, y):
            seconds[step.name] = step.seconds
            parts = {part: stopwatch.seconds.pop(part, 0.0) for part in PARTS}
            profile[step.name] = {**parts, REST: step.seconds - sum(parts.values())}
            x_adv[torch.from_numpy(step.broken).to(x.device)] = torch.from_numpy(step.x_adv).to(x.device)
    counts = {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu_began,
        "rows": model.num_forwarded - forwarded,
    }
    prediction = torch.from_numpy(step.prediction).to(x.device)
    return {"counts": {**counts, "profile": profile}, "x_adv": x_adv, "prediction": prediction}


def differences(
    model: nn.Module, first: int, y: Tensor, runs: dict[str, dict[str, Any]]
) -> list[dict[str, str | int | float]]:
    """The images that only one of the two broke, and the margin of the wrong class there, forwarded one by one."""
    robust = {name: run["prediction"] == y for name, run in runs.items()}
    rows = []
    for i in (robust["front end"] != robust["ours"]).nonzero().flatten().tolist():
        breaker = next(name for name in runs if not robust[name][i])
        with torch.no_grad(), ieee_products():
            gap = margin(model(runs[breaker]["x_adv"][i : i + 1]), y[i : i + 1]).item()
        rows.append({"image": first + i, "broken_by": breaker, "margin": gap})
    return rows


def warm_up(model: nn.Module, attacked_model: AttackedModel, x: Tensor, y: Tensor) -> None:
    """Query both, for what happens once: compilation, and cuDNN's timing of its algorithms."""
    for rows in (len(x), min(WARM_UP, len(x))):
        for grad in (False, True):
            leaf = x[:rows].clone().requires_grad_(grad)
            with torch.set_grad_enabled(grad), attacked_model.during_attack(x[:rows], y[:rows]):
                for network in (model, attacked_model):
                    loss = network(leaf).sum()
                    if grad:
                        torch.autograd.grad(loss, leaf)


def add(total: dict[str, Any], part: dict[str, Any]) -> None:
    """Sum the numbers of nested dictionaries."""
    for key, value in part.items():
        if isinstance(value, dict):
            add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures, which are on disk as well after every step."""
    device = choose_device(args.device)
    config = EvalConfig(checkpoint=args.checkpoint, dataset=args.dataset, data_dir=args.data_dir)
    plain, target = load_network(config), load_network(config)
    model = plain.model.to(device).eval()
    attacked_model = AttackedModel(target.model, device, args.precision, args.compile)
    data = load_data(config, target)
    pixels, labels = to_device(data.x_test[: args.n], data.y_test[: args.n], device)
    images, size = to_float(pixels), min(args.batch_size, args.n)
    suite = Suite(
        pyautoattack, SUITES[args.version], args.norm, args.epsilon, args.seed, args.version, size, device
    )  # fmt: skip
    began = time.perf_counter()
    warm_up(model, attacked_model, images[:size], labels[:size])
    figures: dict[str, Any] = {
        "network": target.name,
        "dataset": data.name,
        "hardware": describe(device),
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "warm_up_seconds": time.perf_counter() - began,
        "images": 0,
        "front end": {},
        "ours": {},
        "robust": {},
        "differences": [],
    }
    stopwatch = Stopwatch(device)
    level = LOGGER.level
    for start in range(0, len(images), size):
        x, y = images[start : start + size], labels[start : start + size]
        LOGGER.setLevel(logging.DEBUG)  # for the beginnings
        with ieee_products() if args.precision == "fp32" else nullcontext():
            runs = {"front end": run_front_end(model, suite, x, y)}
        LOGGER.setLevel(level)
        add(figures["front end"], runs["front end"]["counts"])
        write(args.out, figures)
        runs["ours"] = run_ours(attacked_model, suite, x, y, stopwatch)
        add(figures["ours"], runs["ours"]["counts"])
        add(figures["robust"], {name: (run["prediction"] == y).sum().item() for name, run in runs.items()})
        figures["differences"] += differences(model, start, y, runs)
        figures["images"] += len(x)
        figures["ratio"] = total(figures["ours"]) / total(figures["front end"])
        figures["cpu_ratio"] = figures["ours"]["cpu_seconds"] / figures["front end"]["cpu_seconds"]
        write(args.out, figures)
    return figures


def total(counts: dict[str, Any]) -> float:
    return sum(counts["seconds"].values())


def write(folder: Path, figures: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "autoattack.json").write_text(json.dumps(figures, indent=2) + "\n")


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a sentence and two tables."""
    theirs, ours, a = figures["front end"], figures["ours"], figures["arguments"]
    lines = [
        f"{a['version']} AutoAttack on {figures['network']}, {figures['images']} images of {figures['dataset']} in "
        f"chunks of {a['batch_size']}, {a['norm']}, epsilon {float(a['epsilon']):.4g}, seed {a['seed']}, "
        f"{a['precision']}; {figures['hardware']}. Robust: {figures['robust']['front end']} by the front end, "
        f"{figures['robust']['ours']} by ours; {len(figures['differences'])} verdicts differ.",
        "",
    ]
    cells = []
    for name, seconds in ours["seconds"].items():
        slow = theirs["seconds"].get(name, 0.0)
        cells.append([name, f"{slow:.1f}", f"{seconds:.1f}", f"{seconds / slow:.2f}" if slow else ""])
    cells += [
        ["**total**", f"{total(theirs):.1f}", f"{total(ours):.1f}", f"**{figures['ratio']:.2f}**"],
        ["seconds of CPU", f"{theirs['cpu_seconds']:.1f}", f"{ours['cpu_seconds']:.1f}", f"{figures['cpu_ratio']:.2f}"],
        ["images forwarded", f"{theirs['rows']:,}", f"{ours['rows']:,}", f"{ours['rows'] / theirs['rows']:.2f}"],
    ]
    lines += [markdown_table(["attack", "front end, s", "ours, s", "ours / front end"], cells), ""]
    lines += ["Where our time goes, in percent of it:", ""]
    cells = []
    for part in (*PARTS, REST):
        shares = [100 * parts[part] / total(ours) for parts in ours["profile"].values()]
        cells.append([part, *[f"{share:.1f}" for share in (*shares, sum(shares))]])
    lines.append(markdown_table(["", *ours["profile"], "all"], cells))
    for row in figures["differences"]:
        lines += [
            "",
            f"Image {row['image']} was broken only by {row['broken_by']}, at a margin of {row['margin']:.2g}.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dataset", default="auto")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--n", type=int, default=200, help="first test images")
    parser.add_argument("--version", choices=tuple(SUITES), default="standard")
    parser.add_argument("--norm", choices=tuple(SUITE_NORMS), default="linf")
    parser.add_argument("--epsilon", default="0.031")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.epsilon = parse_epsilon(args.epsilon, norm=args.norm)
    text = markdown(measure(args))
    (args.out / "autoattack.md").write_text(text)
    print(text, end="")


if __name__ == "__main__":
    run_program(main)
