"""The authors' suite (Croce & Hein 2020), from ``pyautoattack`` or ``autoattack``: which attacks, and how strong."""

import importlib
import logging
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import UserError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
ATTACKS = (*STANDARD, "apgd-dlr", "fab")
SUITE_NORMS = {"linf": "Linf", "l2": "L2"}
NUM_TARGETS = 9  # of apgd-t and fab-t: the most likely wrong classes
LOGGER = logging.getLogger("auto-attack")


def choose_attacks(version: str, attacks: str) -> tuple[str, ...]:
    """The attacks in the order in which they run.

    Args:
        version: ``standard``, or ``custom`` for the comma-separated names in ``attacks``.

    Raises:
        UserError: a name is not an attack of the suite, or there is none.
    """
    if version == "standard":
        return STANDARD
    names = tuple(dict.fromkeys(name.strip() for name in attacks.split(",") if name.strip()))
    unknown = [name for name in names if name not in ATTACKS]
    if unknown or not names:
        raise UserError(f"--attacks: unknown attack {', '.join(unknown) or repr(attacks)}; choose {', '.join(ATTACKS)}")
    return names


def check_classes(attacks: tuple[str, ...], num_classes: int) -> None:
    """Raises: UserError: an attack needs more classes than there are."""
    needed = {"apgd-t": NUM_TARGETS + 1, "fab-t": NUM_TARGETS + 1, "apgd-dlr": 3}
    for attack in attacks:
        if num_classes < needed.get(attack, 2):
            raise UserError(
                f"{attack} needs {needed[attack]} classes and here are {num_classes}: "
                "pass --version custom --attacks apgd-ce,fab,square"
            )


def find_package() -> ModuleType:
    """``pyautoattack``, else the authors' ``autoattack`` of their repository.

    Raises:
        UserError: neither is installed.
    """
    for name in ("pyautoattack", "autoattack"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise UserError("AutoAttack is not installed: pip install pyautoattack")


@dataclass(frozen=True)
class Suite:
    """The attacks and their strength, through either package.

    Attributes:
        attacks: names in the order in which they run.
        epsilon: radius in [0, 1]; norm: ``linf`` or ``l2``.
        seed: from which every attack starts, in every chunk.
        log_path: where the authors' package writes its lines; ``pyautoattack`` has the logger ``auto-attack``.
    """

    package: ModuleType
    attacks: tuple[str, ...]
    norm: str
    epsilon: float
    seed: int
    version: str
    batch_size: int
    device: torch.device | str = "cpu"
    log_path: str | None = None

    def start(self, model: nn.Module) -> Any:
        """A front end. Every chunk takes a new one, for a verdict that does not depend on the chunks before."""
        common = {"norm": SUITE_NORMS[self.norm], "eps": self.epsilon, "seed": self.seed, "version": self.version}
        custom = list(self.attacks) if self.version == "custom" else None
        if self._keyword_only:
            return self.package.AutoAttack(model, attacks=custom, device=str(self.device), **common)
        with redirect_stdout(sys.stderr):  # standard output is for the result
            return self.package.AutoAttack(
                model, attacks_to_run=custom or [], device=str(self.device), log_path=self.log_path, **common
            )

    def run(self, front_end: Any, attack: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One attack on images (B, C, H, W) in [0, 1] -> adversarial images and what they are taken for (B,)."""
        front_end.attacks_to_run = [attack]
        if self._keyword_only:
            return front_end.run_standard_evaluation(x, y, batch_size=self.batch_size)
        with redirect_stdout(sys.stderr):
            return front_end.run_standard_evaluation(x, y, bs=self.batch_size, return_labels=True)

    def warn_about_square(self, accuracy: dict[str, float]) -> None:
        """The suite's own check of the accuracies (in percent): running attack by attack hides it from the suite."""
        checks = importlib.import_module(f"{self.package.__name__}.checks")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checks.check_square_sr({name: value / 100 for name, value in accuracy.items()})
        for warning in caught:
            LOGGER.warning(str(warning.message))

    @property
    def _keyword_only(self) -> bool:
        return self.package.__name__ == "pyautoattack"
