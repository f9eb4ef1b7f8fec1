"""Random command lines, and trainings that are killed. Used by ``benchmarks.faults``."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import eval_autoattack
from engine import stopping
from engine.command_line import parse_train
from engine.config import TrainConfig
from engine.stopping import Stopped
from engine.trainer import Trainer
from evaluation.config import EvalConfig, parse_eval
from utils.options import CommonConfig, flag

NUMBERS = [
    "0", "1", "-1", "2", "3", "0.5", "1e-300", "1e308", "1e99999999", "nan", "inf", "-inf", "2147483647", "2147483648",
    "9223372036854775808", "9" * 5000, "0x10", "1_000", "٣", "1/0", "8/255", "4/2", "8", "4", "", " ", "1,2", "--",
]  # fmt: skip
TEXTS = [
    "",
    "..",
    ".",
    "/",
    "a/b",
    "a b",
    "ü",
    "\udcff",
    "x" * 300,
    "`$(x)`",
    "none",
    "auto",
    "cifar10",
    "digits",
    "-",
    "{0}",
    "%s",
]
NAMES = [
    "wrn-10-1", "wrn-16-1", "wrn-11-1", "wrn-10-0", "wrn-10-3000", "wrn-100000-1", "wrn-1000-64", "wrn-10-" + "9" * 40,
    "resnet18-guide", "preactresnet50", "WRN-10-1", "ResNet18_cifar",
]  # fmt: skip
DEVICES = ["cpu", "cuda", "cuda:0", "cuda:99999999999999999999", "cuda:٣", "tpu", "cuda:-1", "cpu:0"]
LISTS = [
    "76,91",
    "3/4,9/10",
    ",",
    "1" + ",1" * 400,
    "0,2/255",
    "-1",
    "9" * 4299 + "/1",
    "1/0",
    "apgd-ce,square",
    "a,b",
    "square",
]
TRAIN = [
    "--dataset",
    "digits",
    "--student",
    "wrn-10-1",
    "--guide",
    "wrn-10-1",
    "--limit-train",
    "32",
    "--val-size",
    "8",
    "--batch-size",
    "16",
    "--epochs",
    "1",
    "--num-steps",
    "1",
    "--eval-size",
    "4",
    "--device",
    "cpu",
    "--mark",
    "line",
]
EVAL = "--version custom --attacks apgd-ce --n-examples 2 --epsilon 0.02 --device cpu --mark line".split()  # noqa: SIM905
# What takes long because it was asked for is parsed, but not run.
LONG = {
    "epochs": 2, "num_steps": 3, "limit_train": 64, "eval_size": 64, "n_examples": 4, "cross_checks": 0,
    "val_size": 1400,
}  # fmt: skip
SMALL = {"auto", "wrn-10-1", "wrn-16-1"}


def random_line(config: type[CommonConfig], rng: random.Random) -> list[str]:
    """One to four random flags with random values."""
    fields = [f for f in dataclasses.fields(config) if "help" in f.metadata]
    words: list[str] = []
    for _ in range(rng.randint(1, 4)):
        f = rng.choice(fields)
        if f.default is False:
            words.append(flag(f.name))
            continue
        pools = [NUMBERS, TEXTS, [str(f.default)]]
        pools += {"student": 4 * [NAMES], "guide": 4 * [NAMES], "device": 4 * [DEVICES]}.get(f.name, [])
        pools += 3 * [LISTS] if f.name in ("decay_epochs", "epsilons", "attacks") else []
        pools += 3 * [list(f.metadata["choices"])] if "choices" in f.metadata else []
        pools += 3 * [NUMBERS] if isinstance(f.default, (int, float)) else []
        number = 2 if f.name == "export" else 1
        words += [
            rng.choice(f.metadata.get("aliases", ()) or (flag(f.name),)),
            *(rng.choice(rng.choice(pools)) for _ in range(number)),
        ]
    if rng.random() < 0.1:
        words.insert(
            rng.randrange(len(words) + 1),
            rng.choice(["--nonsense", "--beta", "9", "-num_classes", "\udcff", "--help=x"]),
        )
    return words


def is_short(config: Any) -> bool:
    values = dataclasses.asdict(config)
    sizes = all(0 < values[name] <= most or (name in ("cross_checks", "val_size") and values[name] <= most)
                for name, most in LONG.items() if name in values)  # fmt: skip
    networks = {values["student"], values.get("guide", "auto")} <= SMALL
    return sizes and networks and values.get("version", "custom") == "custom" and not values.get("plain")


def run_line(program: str, words: list[str], folder: Path) -> str:
    """Parse a command line, and run it where that takes seconds; -> ``parsed`` or ``run``."""
    where = ["--log-dir", str(folder / "Logs")]
    if program == "train_lbgat.py":
        argv = [*TRAIN, *where, "--checkpoint-dir", str(folder / "checkpoints"), *words]
        config = parse_train(argv)
        if is_short(config):
            Trainer(config).fit()
            return "run"
    else:
        argv = [*EVAL, *where, "--checkpoint", str(folder / "checkpoints" / "run" / "best.pt"), *words]
        config = parse_eval(argv)
        if config.compare or is_short(config):
            eval_autoattack.main(argv)
            return "run"
    return "parsed"


CONFIGS: dict[str, type[CommonConfig]] = {"train_lbgat.py": TrainConfig, "eval_autoattack.py": EvalConfig}


def train_and_save_often(config: TrainConfig) -> None:
    """A training that saves after every step."""
    stopping.SECONDS_BETWEEN_SAVES = 0.0
    try:
        Trainer(config).fit()
    except Stopped:
        raise SystemExit(143) from None
