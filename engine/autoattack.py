"""AutoAttack (Croce & Hein 2020) in chunks: which attack broke which image, how long each took, and where to go on.

The attacks are the authors' own, from the package ``pyautoattack`` or ``autoattack``. Its front end is called once for
every attack, on the images that the attacks before left robust. Each attack seeds itself, so this gives the same
verdict as one call of the front end per chunk, and tells in addition which attack broke an image.
"""

import importlib
import logging
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.loader import to_device, to_float
from engine.errors import UserError
from engine.outcomes import Outcomes

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


def attack_chunk(
    model: nn.Module,
    suite: Suite,
    x: Tensor,
    y: Tensor,
    on_attack: Callable[[str, np.ndarray], None] = lambda name, broken_by: None,
) -> dict[str, np.ndarray]:
    """Every attack of the suite on what the ones before left robust.

    Args:
        model: in eval mode, its parameters not requiring gradients.
        x: (B, C, H, W) in [0, 1]; y: (B,); on the suite's device, B at most its batch size.
        on_attack: called after the clean pass and each attack with its name and ``broken_by`` so far.

    Returns:
        ``x_adv`` (the clean image where robust) and the arrays of ``Outcomes`` for these images.

    Raises:
        UserError: the network's outputs are not finite.
    """
    started = time.perf_counter()
    with torch.no_grad():
        logits = model(x)
    if not logits.isfinite().all():
        raise UserError("the network's outputs are not finite: its weights are damaged or its training diverged")
    clean_prediction = logits.max(1)[1]
    adversarial_prediction, x_adv = clean_prediction.clone(), x.clone()
    broken_by = np.where((clean_prediction == y).cpu().numpy(), "", "clean").astype("U16")
    seconds = [time.perf_counter() - started]
    on_attack("clean", broken_by)
    front_end = suite.start(model)
    for attack in suite.attacks:
        started = time.perf_counter()
        left = (adversarial_prediction == y).nonzero().squeeze(1)
        if len(left):
            x_adv[left], adversarial_prediction[left] = suite.run(front_end, attack, x[left], y[left])
        broken_by[(adversarial_prediction != y).cpu().numpy() & (broken_by == "")] = attack
        seconds.append(time.perf_counter() - started)
        on_attack(attack, broken_by)
    return {
        "clean_prediction": clean_prediction.cpu().numpy(),
        "adversarial_prediction": adversarial_prediction.cpu().numpy(),
        "broken_by": broken_by,
        "seconds": np.array(seconds),
        "x_adv": x_adv.cpu().numpy(),
    }


def evaluate(
    model: nn.Module,
    suite: Suite,
    images: np.ndarray,
    labels: np.ndarray,
    state: Path,
    fingerprint: dict[str, Any],
    outcomes: Outcomes | None = None,
) -> Outcomes:
    """Attack all images chunk by chunk.

    Args:
        images: (N, H, W, 3) uint8; labels: (N,).
        state: written after every chunk; the caller deletes it once the results are safe.
        fingerprint: of everything that the verdicts depend on.
        outcomes: what an interrupted evaluation left, to go on with.

    Raises:
        UserError: out of memory, a full disk, or outputs that are not finite.
    """
    n, size = len(images), suite.batch_size
    if outcomes is None:
        height, width, channels = images.shape[1:]
        outcomes = Outcomes.empty(n, -(-n // size), len(suite.attacks), (channels, height, width))
    else:
        LOGGER.info(f"going on with {state}: {outcomes.finished.sum()} of {len(outcomes.finished)} chunks are finished")
    model.eval().requires_grad_(False)
    steps = len(suite.attacks)
    restored = int(np.repeat(outcomes.finished, size)[:n].sum()) * steps
    with tqdm(total=n * steps, initial=restored, unit="img·attack", desc="AutoAttack") as bar:
        for chunk in np.flatnonzero(~outcomes.finished):
            part = slice(chunk * size, min((chunk + 1) * size, n))
            before = outcomes.broken_by[np.repeat(outcomes.finished, size)[:n]]
            pixels, y = to_device(images[part], labels[part], suite.device)
            try:
                result = attack_chunk(model, suite, to_float(pixels), y, partial(_advance, bar, before))
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(f"--batch-size {size} does not fit into the device's memory: pass less") from error
            outcomes.add(chunk, part, result)
            outcomes.save(state, fingerprint)
            LOGGER.info(f"images {part.start} to {part.stop - 1} of {n}: {bar.postfix}")
    suite.warn_about_square(outcomes.accuracies(suite.attacks))
    return outcomes


def _advance(bar: tqdm, before: np.ndarray, name: str, broken_by: np.ndarray) -> None:
    """Show the accuracies of all images so far, those of the running chunk under the attacks that it has met."""
    bar.update(0 if name == "clean" else len(broken_by))
    seen = np.concatenate([before, broken_by])
    clean, robust = 100 * np.mean(seen != "clean"), 100 * np.mean(seen == "")
    bar.set_postfix_str(f"clean {clean:.2f}%, robust {robust:.2f}% after {name}")
