"""The authors' suite (Croce & Hein 2020), from ``pyautoattack`` or ``autoattack``: which attacks, and how strong.

The attacks are the authors' code. We run them one by one, set up as the front end's ``run_standard_evaluation`` sets
them up, so that an evaluation knows which attack broke an image and can resume between two attacks.
"""

import importlib
import logging
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import dataclass
from itertools import takewhile
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.early_exit import patch_attacks
from utils.errors import UserError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
ATTACKS = (*STANDARD, "apgd-dlr", "fab")
SUITES = {
    "standard": STANDARD,
    "dev": ("apgd-ce", "apgd-t"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
SUITE_NORMS = {"linf": "Linf", "l2": "L2"}
NUM_TARGETS = 9  # of apgd-t and fab-t: the most likely wrong classes
LOGGER = logging.getLogger("auto-attack")


def choose_attacks(version: str, attacks: str) -> tuple[str, ...]:
    """The attacks in the order in which they run.

    Args:
        version: ``standard``, ``dev``, ``plus``, ``rand``, or ``custom`` for the comma-separated names in ``attacks``.

    Raises:
        UserError: a name is not an attack of the suite, or there is none.
    """
    if version in SUITES:
        return SUITES[version]
    names = tuple(dict.fromkeys(name.strip() for name in attacks.split(",") if name.strip()))
    unknown = [name for name in names if name not in ATTACKS]
    if unknown or not names:
        raise UserError(f"--attacks: unknown attack {', '.join(unknown) or repr(attacks)}; choose {', '.join(ATTACKS)}")
    return names


def needs_gradient(attacks: tuple[str, ...]) -> bool:
    return attacks != ("square",)


def check_classes(attacks: tuple[str, ...], num_classes: int) -> None:
    """Raises: UserError: an attack needs more classes than there are."""
    needed = {"apgd-t": NUM_TARGETS + 1, "fab-t": NUM_TARGETS + 1, "apgd-dlr": 3}
    for attack in attacks:
        if num_classes < (least := needed.get(attack, 2)):
            instead = ": pass --version custom --attacks apgd-ce,fab,square" if num_classes > 1 else ""
            raise UserError(f"{attack} needs {least} classes and here are {num_classes}{instead}")


def find_package(plain: bool = False) -> ModuleType:
    """Return ``pyautoattack``, else the authors' ``autoattack`` of their repository (not if ``plain``).

    Raises:
        UserError: it is not installed.
    """
    for name in ("pyautoattack",) if plain else ("pyautoattack", "autoattack"):
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
        seed: of every attack, in every chunk.
        log_path: log file of the authors' package; ``pyautoattack`` has the logger ``auto-attack``.
        plain: run the front end's own loop over the attacks.
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
    plain: bool = False

    def start(self, model: nn.Module) -> Any:
        """Return a new front end; every chunk takes one, so that its verdict does not depend on earlier chunks.

        Args:
            model: an ``AttackedModel``; any other network is attacked as it is, without early exit.
        """
        common = {
            "norm": SUITE_NORMS[self.norm],
            "eps": self.epsilon,
            "seed": self.seed,
            "version": "standard" if self.version == "dev" else self.version,
            "device": str(self.device),
        }
        attacks = list(self.attacks) if self.version == "custom" else None
        if self.package.__name__ == "pyautoattack":
            front_end = self.package.AutoAttack(model, attacks=attacks, **common)
        else:
            front_end = _authors_front_end(self.package, model, attacks, self.log_path, common)
        if isinstance(model, AttackedModel):
            patch_attacks(front_end, model)
        return front_end

    def run(self, front_end: Any, attack: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Run one attack on images (B, C, H, W) in [0, 1] that the network classifies correctly.

        Returns:
            Adversarial images and their predictions (B,); the clean image and its label y where the attack failed.
        """
        with torch.no_grad(), redirect_stdout(sys.stderr):
            if self.plain:
                self._set_up(front_end, attack)
                front_end.attacks_to_run = [attack]
                return front_end.run_standard_evaluation(x, y, batch_size=self.batch_size)
            LOGGER.debug(f"running {attack}")
            if attack == self.attacks[0]:
                self._check(front_end, x, y)
            found = self._set_up(front_end, attack).perturb(x.clone(), y.clone())
            prediction = front_end.model(found).max(1)[1]
        broken = prediction != y
        LOGGER.debug(f"{attack} - 1/1 - {broken.sum()} out of {len(y)} successfully perturbed")
        return torch.where(broken.view(-1, 1, 1, 1), found, x), prediction

    def _set_up(self, front_end: Any, attack: str) -> Any:
        """Return the front end's object for an attack, with the settings of ``run_standard_evaluation``."""
        name = {"apgd-t": "apgd_targeted"}.get(attack) or attack.split("-")[0]
        attacker = getattr(front_end, name)
        attacker.seed = front_end.get_seed()
        if name == "apgd":
            attacker.loss = attack.removeprefix("apgd-")
        elif name == "fab":
            attacker.targeted = attack == "fab-t"
            if "fab-t" in (attack, *takewhile(lambda name: name != attack, self.attacks)):
                attacker.n_restarts = 1  # one object serves both, and fab-t sets it to 1
        return attacker

    def _check(self, front_end: Any, x: Tensor, y: Tensor) -> None:
        """Run the suite's own checks of the network on a chunk's images; they warn as Python does."""
        checks = importlib.import_module(f"{self.package.__name__}.checks")
        if self.version != "rand":
            checks.check_randomized(front_end.get_logits, x, y, bs=len(x))
        classes = checks.check_range_output(front_end.get_logits, x)
        checks.check_dynamic(front_end.model, x, False)
        targets = front_end.apgd_targeted.n_target_classes, front_end.fab.n_target_classes
        checks.check_n_classes(classes, list(self.attacks), *targets)

    def warn_about_square(self, accuracy: dict[str, float]) -> None:
        """Run the suite's own check of the accuracies (in percent), which its front end makes after the last attack."""
        checks = importlib.import_module(f"{self.package.__name__}.checks")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            checks.check_square_sr({name: value / 100 for name, value in accuracy.items()})
        for warning in caught:
            LOGGER.warning(str(warning.message))


def _authors_front_end(
    package: ModuleType, model: nn.Module, attacks: list[str] | None, log_path: str | None, common: dict[str, Any]
) -> Any:
    """Return the front end of the authors' own package, which prints and has other names for two settings."""
    with redirect_stdout(sys.stderr):  # standard output is for the result
        return package.AutoAttack(model, attacks_to_run=attacks or [], log_path=log_path, **common)
