"""Both command lines, derived from the configuration's fields."""

import argparse
import dataclasses
import inspect
from typing import Any

from engine.config import CommonConfig, EvalConfig, TrainConfig, flag, require
from engine.errors import UserError
from losses import METHODS


class _Parser(argparse.ArgumentParser):
    """Bad usage is one sentence, like every other error."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def add_options(parser: argparse.ArgumentParser, config: type[CommonConfig]) -> None:
    """One flag per field of the dataclass: underscores become dashes, the default and the type are the field's."""
    for f in dataclasses.fields(config):
        default = f.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        parser.add_argument(
            flag(f.name),
            *f.metadata.get("aliases", ()),
            dest=f.name,
            type=f.metadata.get("parse", str if "nargs" in f.metadata else type(default)),
            choices=f.metadata.get("choices"),
            default=argparse.SUPPRESS,
            nargs=f.metadata.get("nargs"),
            metavar=None if "choices" in f.metadata else f.metadata.get("metavar", f.name.upper()),
            help=f"{f.metadata['help']} (default: {shown if shown != '' else 'none'})",
        )


def _parser(
    description: str, config: type[CommonConfig], legacy: dict[str, dict], epilog: str = ""
) -> argparse.ArgumentParser:
    parser = _Parser(
        description=description,
        epilog=epilog,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, config)
    group = parser.add_argument_group("flags of the published programs, kept as aliases")
    for name, kwargs in legacy.items():
        group.add_argument(name, default=argparse.SUPPRESS, **kwargs)
    return parser


def _methods() -> str:
    """Every method with what it minimises, its own flags and its source, from the registry."""
    flags = {f.name for f in dataclasses.fields(TrainConfig)}
    text = "methods (--method), what training minimises, their own flags, and their source:\n"
    for name, method in METHODS.items():
        own = [flag(p) for p in inspect.signature(method).parameters if p in flags]
        summary = inspect.getdoc(method).splitlines()[0]
        text += f"\n  {name}\n    {summary}\n    {' '.join(own)}\n    {method.source}\n"
    return text


def parse_train(argv: list[str] | None = None) -> TrainConfig:
    """Command line -> TrainConfig.

    Raises:
        UserError: unknown flag or impossible value.
    """
    legacy = {
        "--no-cuda": {"action": "store_true", "help": "as --device cpu"},
        "-num_classes": {"type": int, "help": "10 or 100; without --dataset, chooses cifar10 or cifar100"},
    }
    parser = _parser("Train a robust student with its guide.", TrainConfig, legacy, _methods())
    values = vars(parser.parse_args(argv))
    if values.pop("no_cuda", False):
        values["device"] = "cpu"
    _apply_num_classes(values)
    return TrainConfig(**values)


def parse_eval(argv: list[str] | None = None) -> EvalConfig:
    """Command line -> EvalConfig.

    Raises:
        UserError: unknown flag or impossible value.
    """
    legacy = {
        "--widen_factor": {"type": int, "help": "K of wrn-34-K"},
        "--num_classes": {"type": int, "help": "10 or 100; without --dataset, chooses cifar10 or cifar100"},
        "--dataparallel": {"nargs": "?", "help": "ignored: the prefix module. is found out by itself"},
    }
    values = vars(_parser("Measure robustness with AutoAttack.", EvalConfig, legacy).parse_args(argv))
    values.pop("dataparallel", None)
    values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    if "widen_factor" in values:
        values.setdefault("student", f"wrn-34-{values.pop('widen_factor')}")
        values.pop("widen_factor", None)
    _apply_num_classes(values)
    return EvalConfig(**values)


def _apply_num_classes(values: dict[str, Any]) -> None:
    num_classes = values.pop("num_classes", None)
    if num_classes is None:
        return
    require(num_classes in (10, 100), f"-num_classes {num_classes}: CIFAR has 10 or 100")
    dataset = values.setdefault("dataset", f"cifar{num_classes}")
    contradicts = {"cifar10": 100, "digits": 100, "cifar100": 10}.get(dataset) == num_classes
    require(not contradicts, f"--dataset {dataset} does not have {num_classes} classes")
