"""The command line of train_lbgat.py."""

import argparse

from engine.config import TrainConfig
from engine.config_file import read_config
from losses import METHODS, describe_methods
from utils.options import Parser, apply_num_classes, flag, require

EXAMPLES = """
examples:
  python train_lbgat.py --student wrn-10-1 --guide wrn-10-1 --epochs 2                    (digits, on a CPU)
  python train_lbgat.py --dataset cifar100 --method trades --beta 6 --precision bf16
  python train_lbgat.py --dataset cifar10 --method at --student my_net.py:MyNet --normalize cifar10
  python train_lbgat.py --config Logs/MARK/config.json --seed 2 --mark MARK-seed2         (a run once more)
"""


def parse_train(argv: list[str] | None = None) -> TrainConfig:
    """Command line -> TrainConfig.

    Raises:
        UserError: unknown flag or impossible value.
    """
    legacy = {
        "--no-cuda": {"action": "store_true", "help": "as --device cpu"},
        "-num_classes": {"type": int, "help": "10 or 100; without --dataset, chooses cifar10 or cifar100"},
    }
    parser = Parser("Train a robust student with its guide.", TrainConfig, legacy, describe_methods() + EXAMPLES)
    owners: dict[str, list[str]] = {}
    for method, objective in METHODS.items():
        for p in objective.parameters:
            owners.setdefault(p.name, []).append(method)
    for name in owners:
        parser.groups["method"].add_argument(flag(name), dest=name, type=float, help=argparse.SUPPRESS)
    parser.groups["run"].add_argument(
        "--config", metavar="FILE.json", help="take the settings of a run's config.json; other flags override them"
    )
    values = vars(parser.parse_args(argv))
    if path := values.pop("config", None):
        values = read_config(path, TrainConfig, values) | values
    if values.pop("no_cuda", False):
        values["device"] = "cpu"
    apply_num_classes(values)
    method = values.get("method", TrainConfig.method)
    for name in owners.keys() & values.keys():
        require(
            method in owners[name] or method not in METHODS,
            f"{flag(name)} is a parameter of {', '.join(owners[name])}, not of {method}: leave it out",
        )
    return TrainConfig.create(**values)
