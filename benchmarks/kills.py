"""Kill training processes at random moments, resume with as many or another number of them, and compare the
weights at the end with those of a run that was left alone.

    python -m benchmarks.kills --runs 30 --out results/kills-cpu

Everything is in float64, so that runs of different numbers of processes may be compared to 1e-10; runs of one number
must be equal bit for bit.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import datasets.loader
import engine.logger
import engine.trainer
import engine.validate
import train_lbgat
from benchmarks.processes import Store, fork, status
from engine.config import TrainConfig
from utils.device import describe
from utils.errors import UserError, run_program
from utils.provenance import commit

SIZES, MOST_KILLS, BOUND = (1, 2, 3, 4), 3, 1e-10
SECONDS_ALONE = 10.0  # then the others get SIGTERM, which torchrun sends at once
SECONDS_TO_END = 20.0  # of the other processes, once one is killed
# Four epochs of four steps of 8 images and one of 2, which three or four processes do not share evenly.
SETTINGS: dict[str, Any] = {
    "dataset": "digits", "student": "wrn-10-1", "method": "trades", "awp_gamma": 0.01, "average_every": "epoch",
    "limit_train": 34, "batch_size": 8, "num_steps": 2, "step_size": 0.02, "epochs": 4, "decay_epochs": (3,),
    "eval_size": 6, "val_size": 6, "save_freq": 2, "device": "cpu", "mark": "run", "seed": 2,
}  # fmt: skip


def tiny_network(name: str, num_classes: int) -> nn.Module:
    """Two convolutions with BatchNorm, whatever the name."""
    layers = [nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()]
    layers += [nn.Conv2d(6, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, num_classes))


def use_float64() -> None:
    """From now on this process trains tiny networks, all in float64."""
    torch.set_default_dtype(torch.float64)
    datasets.loader.to_float = engine.validate.to_float = lambda images: images.double() / 255
    engine.trainer.create_model = tiny_network
    engine.logger.Logger.plot = lambda self, final=False: None


def start(folder: Path, size: int, store: Store, **changes: Any) -> list[int]:
    """The program in so many processes on a run in the folder; return their ids. They print to ``folder/output``."""
    paths = {"log_dir": str(folder / "Logs"), "checkpoint_dir": str(folder / "checkpoints")}
    config = TrainConfig.create(**{**SETTINGS, **paths, **changes})

    def main() -> None:
        use_float64()
        train_lbgat.parse_train = lambda argv: config
        train_lbgat.main([])

    return [fork(main, folder / "output", rank, size, store.port) for rank in range(size)]


def finish(folder: Path, size: int, **changes: Any) -> dict[str, Any]:
    """Run to the end; return last.pt.

    Raises:
        UserError: a process failed.
    """
    store = Store()  # lives until all have ended
    codes = [status(pid) for pid in start(folder, size, store, **changes)]
    del store
    if any(codes):
        raise UserError(f"{size} processes ended with {codes}: {(folder / 'output').read_text()[-1000:]}")
    return torch.load(folder / "checkpoints/run/last.pt", weights_only=True)


@cache
def undisturbed(size: int) -> tuple[dict[str, Any], float]:
    """last.pt of a run that is left alone, and the seconds that it takes."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        return finish(Path(folder), size), time.monotonic() - began


def kill_one_or_all(folder: Path, size: int, seconds: float, victims: int) -> dict[str, Any]:
    """Start, wait, kill so many processes and wait for the others, which must end by themselves.

    Raises:
        UserError: they do not end, or end as if nothing had happened.
    """
    store = Store()
    pids = start(folder, size, store)
    time.sleep(seconds)
    for pid in pids[:victims] if victims < size else pids:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    codes = []
    for pid in pids:
        try:
            codes.append(status(pid, max(0.0, began + SECONDS_ALONE - time.monotonic()), kill=False))
        except TimeoutError:  # it waits for a process that was killed before all had met: torchrun ends it
            os.kill(pid, signal.SIGTERM)
            codes.append(status(pid))
    took = time.monotonic() - began
    if codes.count(0) not in (0, size) or took > SECONDS_TO_END:
        raise UserError(f"after {seconds:.2f} s the processes ended with {codes}, {took:.1f} s after the kill")
    return {"processes": size, "killed": victims, "after_seconds": seconds, "codes": codes, "others_took_seconds": took}


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference of two checkpoints' tensors; infinite where they do not have the same ones."""
    if isinstance(ours, Tensor):
        return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0
    if isinstance(ours, dict):
        return max((distance(ours[k], theirs[k]) for k in ours), default=0.0) if ours.keys() == theirs.keys() else 1e999
    return 0.0


def one_run(folder: Path, sizes: Sequence[int], draw: random.Random) -> dict[str, Any]:
    """One training that is killed once for each size but the last, with which it finishes."""
    _, seconds = undisturbed(sizes[0])
    kills = [
        kill_one_or_all(folder, size, draw.uniform(0.1, 0.8) * seconds, draw.choice([1, size])) for size in sizes[:-1]
    ]
    equal = len(set(sizes)) == 1
    expected, _ = undisturbed(sizes[0] if equal else 1)
    difference = distance(finish(folder, sizes[-1]), expected)
    good = difference == 0 if equal else difference <= BOUND
    return {"sizes": list(sizes), "kills": kills, "difference": difference, "as_undisturbed": good}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="folder for kills.json")
    args = parser.parse_args()
    draw, runs = random.Random(args.seed), []
    for i in range(args.runs):
        kills = draw.randint(1, MOST_KILLS)
        # Half of the runs keep their number of processes; the others change it at every start.
        sizes = [draw.choice(SIZES)] * (kills + 1)
        for k in range(1, len(sizes) if i % 2 else 0):
            sizes[k] = draw.choice([size for size in SIZES if size != sizes[k - 1]])
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_run(Path(folder), sizes, draw))
        print(f"run {i + 1}: processes {sizes}, difference {runs[-1]['difference']:.1e}", flush=True)
    changed = [run for run in runs if len(set(run["sizes"])) > 1]
    figures = {
        "runs": len(runs),
        "kills": sum(len(run["kills"]) for run in runs),
        "runs_with_other_numbers_of_processes": len(changed),
        "runs_as_undisturbed": sum(run["as_undisturbed"] for run in runs),
        "largest_difference": max(run["difference"] for run in runs),
        "longest_end_seconds": max(kill["others_took_seconds"] for run in runs for kill in run["kills"]),
        "hardware": describe(torch.device("cpu")),
        **commit(),
        "command": ["python", "-m", "benchmarks.kills", *sys.argv[1:]],
        "each": runs,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "kills.json").write_text(json.dumps(figures, indent=2) + "\n")
    print({name: value for name, value in figures.items() if name not in ("each", "command")})
    if figures["runs_as_undisturbed"] < len(runs):
        raise UserError("not every run ended with the weights of the undisturbed one")


if __name__ == "__main__":
    run_program(main)
