"""Options of both programs: a dataclass is the single source of defaults, and its fields become flags."""

import argparse
import dataclasses
import re
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from utils.errors import UserError

NORMS = ("linf", "l2")


PRECISIONS = ("fp32", "tf32", "bf16")


COMPILE = ("auto", "on", "off")


def parse_epsilon(text: str | float, what: str = "epsilon") -> float:
    """``0.031``, ``8/255`` or the published spelling ``8.0`` of 8/255 -> a radius in [0, 1].

    Raises:
        UserError: not a number, negative, or above 1.
    """
    try:
        value = float(Fraction(str(text).replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise UserError(f"{what} {text!r} is not a number: write 0.031 or 8/255") from error
    if value == 8:
        return 8 / 255
    if not 0 <= value <= 1:
        raise UserError(f"{what} {text} is outside [0, 1], the range of a pixel: write 0.031 or 8/255")
    return value


def format_epsilon(epsilon: float) -> str:
    """The inverse of parse_epsilon: ``0.031``, or ``8/255`` where decimals would be endless."""
    decimal = f"{epsilon:g}"
    pixels = round(255 * epsilon)
    return f"{pixels}/255" if float(decimal) != epsilon and pixels / 255 == epsilon else decimal


def option(default: Any, help: str, **metadata: Any) -> Any:
    """A dataclass field with what the command line needs: help, and optionally parse, choices, aliases."""
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Settings that training and evaluation share."""

    dataset: str
    student: str
    data_dir: str = option("data", "folder of the data files: NAME.npz, or torchvision's download")
    norm: str = option("linf", "norm of the epsilon-ball", choices=NORMS)
    epsilon: float = option(0.031, "radius of the ball in [0, 1]; 8/255 is read as such", parse=parse_epsilon)
    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU where there is one")
    seed: int = option(1, "of everything random; the same seed gives the same result")
    mark: str = option("", "name of the run and of its folders; made from the settings if empty", aliases=("-mark",))
    log_dir: str = option("Logs", "logs go to LOG_DIR/MARK")

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", parse_epsilon(self.epsilon))
        require(self.norm in NORMS, f"--norm {self.norm}: choose {' or '.join(NORMS)}")
        require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            f"--device {self.device}: choose auto, cpu, cuda or cuda:N",
        )
        require(0 <= self.seed < 2**63, f"--seed {self.seed} must be a non-negative integer")
        require(
            re.fullmatch(r"[\w.+-]*", self.mark) is not None and self.mark not in (".", ".."),
            f"--mark {self.mark!r} names a folder: letters, digits and . _ + - only",
        )


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


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


def _apply_num_classes(values: dict[str, Any]) -> None:
    num_classes = values.pop("num_classes", None)
    if num_classes is None:
        return
    require(num_classes in (10, 100), f"-num_classes {num_classes}: CIFAR has 10 or 100")
    dataset = values.setdefault("dataset", f"cifar{num_classes}")
    contradicts = {"cifar10": 100, "digits": 100, "cifar100": 10}.get(dataset) == num_classes
    require(not contradicts, f"--dataset {dataset} does not have {num_classes} classes")
