"""Options of both programs: a dataclass is the single source of defaults, and its fields become flags."""

import argparse
import dataclasses
import math
import numbers
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from utils.errors import UserError

NORMS = ("linf", "l2")
LARGEST_INTEGER, LARGEST_BATCH = 2**31 - 1, 1_000_000
PRECISIONS = ("fp32", "tf32", "bf16")
COMPILE = ("auto", "on", "off")
GROUPS = ("data", "method", "attack", "optimisation", "averaging", "evaluation", "output", "run")  # of --help
UNITS = {
    "batch_size": "IMAGES",
    "limit_train": "IMAGES",
    "val_size": "IMAGES",
    "eval_size": "IMAGES",
    "n_examples": "IMAGES",
    "cross_checks": "IMAGES",
    "epochs": "EPOCHS",
    "decay_epochs": "EPOCHS",
    "awp_start_epoch": "EPOCH",
    "patience": "EPOCHS",
    "save_freq": "EPOCHS",
    "num_steps": "STEPS",
    "log_interval": "STEPS",
    "max_minutes": "MINUTES",
    "epsilon": "RADIUS",
    "step_size": "LENGTH",
    "epsilons": "RADII",
    "extra_fraction": "FRACTION",
}  # of flags, in the place of their values in --help
NUMBER = r"\s*(\d{1,20}\.?\d{0,20}|\.\d{1,20})(e[+-]?\d{1,3})?\s*"


def parse_epsilon(text: str | float, what: str = "epsilon", norm: str = "linf") -> float:
    """Read a radius: ``0.031``, ``8/255``, or in l-inf the published spelling ``8.0`` of 8/255.

    Raises:
        UserError: not a number, negative, or in l-inf above 1.
    """
    numerator, slash, denominator = str(text).partition("/")
    if not all(re.fullmatch(NUMBER, part, re.IGNORECASE | re.ASCII) for part in (numerator, denominator or "1")):
        raise UserError(f"{what} {str(text)[:40]!r} is not a number of 0 or more: write 0.031 or 8/255")
    if slash and not (denominator and float(denominator)):
        raise UserError(f"{what} {str(text)[:40]!r} is not a fraction: write 8/255")
    value = float(numerator) / (float(denominator) if slash else 1.0)
    if not math.isfinite(value):
        raise UserError(f"{what} {text} is too large: write 0.031 or 8/255")
    if norm == "linf" and value == 8:
        return 8 / 255
    if norm == "linf" and value > 1:
        as_pixels = f", or {value:g}/255 for {value:g} of 255 levels" if value == int(value) < 256 else ""
        raise UserError(f"{what} {text} is above 1, the range of a pixel: write 0.031 or 8/255{as_pixels}")
    return value


def format_epsilon(epsilon: float) -> str:
    """The inverse of parse_epsilon: ``0.031``, or ``8/255`` where decimals would be endless."""
    decimal = f"{epsilon:g}"
    pixels = round(255 * epsilon)
    return f"{pixels}/255" if float(decimal) != epsilon and pixels / 255 == epsilon else decimal


def option(default: Any, help: str, group: str = "run", **metadata: Any) -> Any:
    """Declare a field that becomes a flag, listed in a group of ``--help``.

    Args:
        metadata: optionally parse, choices, aliases, nargs, metavar of the flag, and its range: at_least, above, below.
    """
    return field(default=default, metadata={"help": help, "group": group, **metadata})


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """Settings that training and evaluation share."""

    dataset: str
    student: str
    data_dir: str = option("data", "folder of the data files: NAME.npz, or torchvision's download", "data")
    norm: str = option("linf", "norm of the epsilon-ball", "attack", choices=NORMS)
    epsilon: float = option(
        0.031,
        "radius of the ball: in l-inf in [0, 1], such as 0.031 or 8/255 (8 is read as 8/255); in l2 any",
        "attack",
        parse=str,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU where there is one")
    seed: int = option(1, "seed of all random numbers: the same seed gives the same result")
    mark: str = option("", "name of the run and of its folders; made from the settings if empty", aliases=("-mark",))
    log_dir: str = option("Logs", "logs go to LOG_DIR/MARK")

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, convert(f, getattr(self, f.name)))
        require(self.norm in NORMS, f"--norm {self.norm}: choose {' or '.join(NORMS)}")
        object.__setattr__(self, "epsilon", parse_epsilon(self.epsilon, norm=self.norm))
        require(
            re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", self.device) is not None,
            f"--device {self.device}: choose auto, cpu, cuda or cuda:N",
        )
        for f in dataclasses.fields(self):
            value, most = getattr(self, f.name), LARGEST_BATCH if f.name == "batch_size" else LARGEST_INTEGER
            large = f.name != "seed" and isinstance(value, int) and value > most
            require(not large, f"{flag(f.name)} is too large: it must be from 1 to {most}")
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


def convert(f: dataclasses.Field, value: Any) -> Any:
    """A value as its flag gives it: of a program, also a path for a text, and a list or its text for a tuple.

    Raises:
        UserError: the value is of another kind than the field's default.
    """
    kind, parse = type(f.default), f.metadata.get("parse")
    if "help" not in f.metadata or (kind is float and parse):  # parsed as a radius
        return value
    value = _plain(value)
    if kind is tuple:
        require(isinstance(value, Iterable), f"{flag(f.name)} {str(value)[:40]!r} must be a list")
        parts = [value] if isinstance(value, str) else list(map(_plain, value))
        if parse:
            parts = [each for part in parts for each in (parse(part) if isinstance(part, str) else [part])]
        fits = all(isinstance(part, (numbers.Real, str)) and not isinstance(part, bool) for part in parts)
        require(fits, f"{flag(f.name)} {str(value)[:40]!r} must be a list of numbers")
        return tuple(parts)
    accepted = {bool: bool, int: numbers.Integral, float: numbers.Real, str: (str, os.PathLike)}[kind]
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        name = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}[kind]
        raise UserError(f"{flag(f.name)} {str(value)[:40]!r} must be {name}")
    if kind is str:
        return parse(os.fspath(value)) if parse else os.fspath(value)
    try:
        return kind(value)
    except OverflowError as error:
        raise UserError(f"{flag(f.name)} is too large") from error


def _plain(value: Any) -> Any:
    """A number of NumPy or PyTorch as Python's."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def check_range(f: dataclasses.Field, value: Any) -> None:
    """Raises: UserError: the value is none of the field's choices, or outside of its range."""
    choices, low, above, below = (f.metadata.get(key) for key in ("choices", "at_least", "above", "below"))
    require(choices is None or value in choices, f"{flag(f.name)} {value}: choose {' or '.join(choices or ())}")
    inside = (low, above, below) == (None, None, None) or (
        (low is None or value >= low)
        and (above is None or value > above)
        and (value < (math.inf if below is None else below))
    )
    require(inside, f"{flag(f.name)} {value} must be {describe_range(f)}")


def describe_range(f: dataclasses.Field) -> str:
    """``above 0``, ``in [0, 1)``, ``at least 1`` or ``0 or more``; empty where any value may be."""
    low, above, below = (f.metadata.get(key) for key in ("at_least", "above", "below"))
    if above is not None:
        return f"above {above:g}" + ("" if below is None else f" and below {below:g}")
    if low is None:
        return "" if below is None else f"below {below:g}"
    if below is not None:
        return f"in [{low:g}, {below:g})"
    return f"at least {low:g}" if low else "0 or more"


def describe_field(f: dataclasses.Field, default: str) -> str:
    """The help of a flag: what it is; its choices, if any, on a line of their own; its range and default."""
    choices, range_ = f.metadata.get("choices"), describe_range(f)
    lines = [f.metadata["help"], f"choices: {', '.join(choices)}" if choices else ""]
    lines.append(f"{range_} (default: {default or 'none'})".strip())
    return "\n".join(filter(None, lines))


def parse_epochs(text: str) -> tuple[int | Fraction, ...]:
    """``76,91`` -> (76, 91); ``3/4,9/10`` -> parts of the run; an empty string is no epoch at all."""
    try:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(Fraction(part) if "/" in part else int(part) for part in parts)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"{text[:40]!r} is not a list of epochs: write 76,91, or 3/4,9/10 for parts of the run"
        ) from error


def parse_factors(text: str) -> tuple[float, ...]:
    """``0.1,0.5`` -> (0.1, 0.5)."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"{text[:40]!r} is not a list of numbers: write 0.1,0.5") from error


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Wraps each line of a flag's help by itself: what it is; its choices; its range and default."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return [line for part in text.split("\n") for line in super(_Formatter, self)._split_lines(part, width)]


class Parser(argparse.ArgumentParser):
    """A command line made of a configuration: one flag per field, in the groups of the fields.

    Underscores become dashes; default and type are the field's. Bad usage is one sentence, like every other error.

    Args:
        legacy: further flags, kept from the published programs, with the arguments of ``add_argument``.
    """

    def __init__(self, description: str, config: type[CommonConfig], legacy: dict[str, dict], epilog: str = ""):
        super().__init__(
            usage="%(prog)s [options]",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=_Formatter,
            argument_default=argparse.SUPPRESS,
        )
        fields = {f.name: f for f in dataclasses.fields(config) if "help" in f.metadata}
        names = dict.fromkeys(sorted((f.metadata["group"] for f in fields.values()), key=GROUPS.index))
        self.groups = {name: self.add_argument_group(name) for name in names}
        for f in fields.values():
            self._add_field(f)
        group = self.add_argument_group("flags of the published programs, kept as aliases")
        for name, kwargs in legacy.items():
            group.add_argument(name, **kwargs)

    def _add_field(self, f: dataclasses.Field) -> None:
        group = self.groups[f.metadata["group"]]
        if f.default is False:
            group.add_argument(
                flag(f.name), dest=f.name, action="store_true", help=f"{f.metadata['help']} (default: False)"
            )
            return
        shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
        group.add_argument(
            flag(f.name),
            *f.metadata.get("aliases", ()),
            dest=f.name,
            type=f.metadata.get("parse", str if "nargs" in f.metadata else type(f.default)),
            choices=f.metadata.get("choices"),
            nargs=f.metadata.get("nargs"),
            metavar=f.metadata.get("metavar", UNITS.get(f.name, f.name.upper())),
            help=describe_field(f, str(shown)).replace("%", "%%"),
        )

    def error(self, message: str) -> None:
        raise UserError(f"{message}; {self.prog} --help lists the flags")


def apply_num_classes(values: dict[str, Any]) -> None:
    """Turn the published flag -num_classes into a data set."""
    num_classes = values.pop("num_classes", None)
    if num_classes is None:
        return
    require(num_classes in (10, 100), f"-num_classes {num_classes}: CIFAR has 10 or 100")
    dataset = values.setdefault("dataset", f"cifar{num_classes}")
    contradicts = {"cifar10": 100, "digits": 100, "cifar100": 10}.get(dataset) == num_classes
    require(not contradicts, f"--dataset {dataset} does not have {num_classes} classes")
