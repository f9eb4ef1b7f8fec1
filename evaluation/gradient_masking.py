"""Cross-checks for gradient masking: signs that the attacks missed adversarial examples.

A network whose gradients vanish, saturate or are noise looks robust to attacks that follow them. The signs are those of
Athalye et al. 2018 (section 3.1), Carlini et al. 2019 (section 4) and Croce & Hein 2020. One that fails says that the
robust accuracy is not to be trusted; all of them passed prove nothing.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn
from tqdm import tqdm

from attacks.pgd import AttackSpec, cross_entropy_per_image, perturb, starting_point
from evaluation.autoattack.suite import LOGGER, NUM_TARGETS, Suite
from utils.options import format_epsilon

PGD_STEPS, PGD_RESTARTS = 100, 5
NOISE_DRAWS, NOISE_POINTS = 10, 5.0


@dataclass(frozen=True)
class Check:
    """One sign of gradient masking: ``passed`` if the network is free of it; ``detail`` has the figures."""

    name: str
    passed: bool
    detail: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name}: {self.detail}"


@dataclass(frozen=True)
class _Images:
    """The images of the checks, and which of them are correct under an attack."""

    model: nn.Module
    suite: Suite
    x: Tensor
    y: Tensor
    bar: tqdm

    @property
    def tolerance(self) -> int:
        """Tolerance for random starts: 0.5% of the images, at least 1."""
        return max(1, len(self.x) // 200)

    @torch.no_grad()
    def correct(self, x: Tensor, y: Tensor) -> Tensor:
        return self.model(x).argmax(1) == y

    def correct_under(self, attack: Callable[[Tensor, Tensor], Tensor], mask: Tensor | None = None) -> Tensor:
        """Attack the images of a mask (n,), or all; return which are correct then (n,), False outside the mask.

        Args:
            attack: images (B, C, H, W) and labels (B,) -> which are correct after it (B,).
        """
        mask = torch.ones_like(self.y, dtype=torch.bool) if mask is None else mask
        correct = torch.zeros_like(mask)
        index = mask.nonzero().squeeze(1)
        self.bar.update(len(mask) - len(index))
        for part in index.split(self.suite.batch_size) if len(index) else ():
            correct[part] = attack(self.x[part], self.y[part])
            self.bar.update(len(part))
        return correct

    def correct_under_suite(self, name: str, mask: Tensor, epsilon: float | None = None) -> Tensor:
        """The same for one of the suite's attacks in its standard version, at the suite's epsilon or another."""
        epsilon = self.suite.epsilon if epsilon is None else epsilon
        if epsilon == 0:
            return mask
        suite = replace(self.suite, version="standard", attacks=("apgd-ce",), epsilon=epsilon)
        return self.correct_under(lambda x, y: suite.run(suite.start(self.model), name, x, y)[1] == y, mask)


def cross_checks(model: nn.Module, suite: Suite, x: Tensor, y: Tensor, robust: Tensor) -> list[Check]:
    """Look for four signs of gradient masking on all the images: the cost is linear in their number.

    Args:
        model: images to logits (B, K), in eval mode, its parameters not requiring gradients.
        suite: gives epsilon, norm, seed and batch size; the attacks are as strong as in the standard version.
        x: (n, C, H, W) in [0, 1]; y: (n,); on the suite's device.
        robust: (n,) bool, which of these images the suite found robust.
    """
    with torch.no_grad():
        num_classes = model(x[:1]).shape[1]
    white_box = ("apgd-ce", "apgd-t") if num_classes > NUM_TARGETS else ("apgd-ce",)  # apgd-t has that many targets
    radii = _radii(suite, x[0].numel())
    passes = 2 + len(white_box) + len(radii) + PGD_RESTARTS + NOISE_DRAWS
    total, silent = passes * len(x), sys.stderr is None
    with tqdm(total=total, unit="img·attack", desc="cross-checks", disable=silent) as bar:
        images = _Images(model, suite, x, y, bar)
        clean = images.correct_under(images.correct)
        after_ce = images.correct_under_suite("apgd-ce", clean)
        apgd = after_ce if len(white_box) == 1 else images.correct_under_suite("apgd-t", after_ce)
        checks = [
            _black_box(images, clean, apgd, " + ".join(white_box)),
            _falls(images, clean, after_ce, radii),
            _pgd(images, clean, apgd, robust.to(clean.device)),
            _noise(images, clean),
        ]
    for check in checks:
        LOGGER.info(str(check))
    return checks


def _black_box(images: _Images, clean: Tensor, apgd: Tensor, white_box: str) -> Check:
    """Pass if Square, which uses logits only, breaks no more images than the attacks that use gradients."""
    black, white = int(images.correct_under_suite("square", clean).sum()), int(apgd.sum())
    return Check(
        "black box not below white box",
        black >= white - images.tolerance,
        f"{black} of {len(clean)} images are correct under square alone, {white} under {white_box}",
    )


def _radii(suite: Suite, num_values: int) -> list[float]:
    """Return half and double epsilon, and the radius in which plain gray is within reach of every image: it is at most
    0.5 away in each value."""
    gray = 0.5 if suite.norm == "linf" else 0.5 * math.sqrt(num_values)
    return sorted({radius for radius in (suite.epsilon / 2, 2 * suite.epsilon) if 0 < radius < gray} | {gray})


def _falls(images: _Images, clean: Tensor, after_ce: Tensor, radii: list[float]) -> Check:
    """Pass if accuracy under APGD-CE does not rise with epsilon, and at the largest radius only images of the class
    that gray is predicted as are correct: each of the others has gray as an adversarial example in its ball.

    Each radius starts from the clean images, so what broke at a smaller one is attacked again.
    """
    correct = {0.0: clean, images.suite.epsilon: after_ce}
    correct |= {radius: images.correct_under_suite("apgd-ce", clean, radius) for radius in radii}
    counts = [int(correct[radius].sum()) for radius in sorted(correct)]
    gray_is_wrong = ~images.correct(torch.full_like(images.x[:1], 0.5), images.y)
    missed = int((correct[radii[-1]] & gray_is_wrong).sum())
    figures = ", ".join(
        f"{count} at {format_epsilon(radius)}" for count, radius in zip(counts, sorted(correct), strict=True)
    )
    return Check(
        "accuracy falls to zero as epsilon grows",
        max(after - before for before, after in pairwise(counts)) <= images.tolerance and missed <= images.tolerance,
        f"of {len(clean)} images, correct under apgd-ce: {figures}; plain gray breaks {missed} of the last",
    )


def _pgd(images: _Images, clean: Tensor, apgd: Tensor, robust: Tensor) -> Check:
    """Pass if PGD with restarts and a total length of 2.5 epsilon (Madry et al. 2018) breaks no more images than APGD,
    and none that the suite found robust."""
    suite = images.suite
    spec = AttackSpec(suite.epsilon, 2.5 * suite.epsilon / PGD_STEPS, PGD_STEPS, suite.norm, start="uniform")
    generator = torch.Generator(images.x.device).manual_seed(suite.seed)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        x_adv = perturb(images.model, x, y, cross_entropy_per_image, spec, generator, uses_clean=False)
        return images.correct(x_adv, y)

    correct = clean
    for _ in range(PGD_RESTARTS):
        correct = images.correct_under(attack, correct)
    by_pgd, by_apgd, missed = (int(mask.sum()) for mask in (correct, apgd, robust & ~correct))
    return Check(
        f"PGD-{PGD_STEPS} not better than APGD",
        by_pgd >= by_apgd - images.tolerance and missed <= images.tolerance,
        f"{by_pgd} of {len(clean)} images are correct under {PGD_RESTARTS} restarts, {by_apgd} under apgd, "
        f"{int(robust.sum())} under the suite, of which PGD breaks {missed}",
    )


def _noise(images: _Images, clean: Tensor) -> Check:
    """Pass if uniform noise from the ball (in many dimensions its surface in l2) costs at most 5 points of accuracy.

    Noise must be about sqrt(D) times as long as an adversarial perturbation to reach a smooth boundary in D dimensions
    (Fawzi et al. 2016). A network that loses more than 5 points has gradients that say little about its errors at this
    scale. Adversarially trained ones lose less than one.
    """
    suite = images.suite
    spec = AttackSpec(suite.epsilon, 0.0, 1, suite.norm, start="uniform")
    generator = torch.Generator(images.x.device).manual_seed(suite.seed)
    draws = [
        images.correct_under(lambda x, y: images.correct(starting_point(x, spec, generator), y))
        for _ in range(NOISE_DRAWS)
    ]
    before, after = (100 * correct.float().mean().item() for correct in (clean, torch.stack(draws)))
    return Check(
        "noise costs little accuracy",
        before - after <= NOISE_POINTS + 1e-3,  # float32 gives 5.0000012
        f"clean {before:.2f}%, under uniform noise of {format_epsilon(suite.epsilon)} {after:.2f}% "
        f"in the mean of {NOISE_DRAWS} draws; a loss of up to {NOISE_POINTS:g} points passes",
    )
