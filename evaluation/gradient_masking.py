"""Cross-checks for gradient masking: signs that the attacks failed to see a weakness, rather than that there is none.

A network whose gradients vanish, saturate or are noise looks robust to attacks that follow them. The signs are those of
Athalye et al. 2018 (section 3.1), Carlini et al. 2019 (section 4) and Croce & Hein 2020. One that fails says that the
robust accuracy is not to be trusted; all of them passed prove nothing.
"""

import math
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
    """The images under examination, and which of them are right under an attack."""

    queries: nn.Module
    suite: Suite
    x: Tensor
    y: Tensor
    bar: tqdm

    @property
    def chance(self) -> int:
        """So many images may go either way by a random start: one in 200, and at least one."""
        return max(1, len(self.x) // 200)

    @torch.no_grad()
    def right(self, x: Tensor, y: Tensor) -> Tensor:
        return self.queries(x).argmax(1) == y

    def right_under(self, attack: Callable[[Tensor, Tensor], Tensor], among: Tensor | None = None) -> Tensor:
        """(n,) bool, False outside ``among``; ``attack`` tells of (B, C, H, W) and labels which are right under it."""
        among = torch.ones_like(self.y, dtype=torch.bool) if among is None else among
        right = torch.zeros_like(among)
        index = among.nonzero().squeeze(1)
        self.bar.update(len(among) - len(index))
        for part in index.split(self.suite.batch_size) if len(index) else ():
            right[part] = attack(self.x[part], self.y[part])
            self.bar.update(len(part))
        return right

    def right_under_suite(self, name: str, among: Tensor, epsilon: float | None = None) -> Tensor:
        """The same of one of the suite's attacks, as it is in the standard version, at its epsilon or another."""
        epsilon = self.suite.epsilon if epsilon is None else epsilon
        if epsilon == 0:
            return among
        suite = replace(self.suite, version="standard", attacks=("apgd-ce",), epsilon=epsilon)
        return self.right_under(lambda x, y: suite.run(suite.start(self.queries), name, x, y)[1] == y, among)


def cross_checks(queries: nn.Module, suite: Suite, x: Tensor, y: Tensor, robust: Tensor) -> list[Check]:
    """Four signs of gradient masking, each looked for on all the images: the cost is linear in their number.

    Args:
        queries: images to logits (B, K), in eval mode, its parameters not requiring gradients.
        suite: gives epsilon, norm, seed and batch size; the attacks are as strong as in the standard version.
        x: (n, C, H, W) in [0, 1]; y: (n,); on the suite's device.
        robust: (n,) bool, the suite's verdict on these images.
    """
    with torch.no_grad():
        num_classes = queries(x[:1]).shape[1]
    white_box = ("apgd-ce", "apgd-t") if num_classes > NUM_TARGETS else ("apgd-ce",)  # apgd-t has that many targets
    radii = _radii(suite, x[0].numel())
    passes = 2 + len(white_box) + len(radii) + PGD_RESTARTS + NOISE_DRAWS
    with tqdm(total=passes * len(x), unit="img·attack", desc="cross-checks") as bar:
        images = _Images(queries, suite, x, y, bar)
        clean = images.right_under(images.right)
        after_ce = images.right_under_suite("apgd-ce", clean)
        apgd = after_ce if len(white_box) == 1 else images.right_under_suite("apgd-t", after_ce)
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
    """Square, which sees logits alone, leaves at least as many images right as the attacks that see gradients."""
    black, white = int(images.right_under_suite("square", clean).sum()), int(apgd.sum())
    return Check(
        "black box not below white box",
        black >= white - images.chance,
        f"square alone leaves {black} of {len(clean)} images right, {white_box} {white}",
    )


def _radii(suite: Suite, num_values: int) -> list[float]:
    """Beside 0 and epsilon: its half, its double, and the radius in which any image may become plain gray, which is at
    most 0.5 away in each of the image's values."""
    gray = 0.5 if suite.norm == "linf" else 0.5 * math.sqrt(num_values)
    return sorted({radius for radius in (suite.epsilon / 2, 2 * suite.epsilon) if 0 < radius < gray} | {gray})


def _falls(images: _Images, clean: Tensor, after_ce: Tensor, radii: list[float]) -> Check:
    """Accuracy under APGD-CE does not rise with epsilon, and nothing is left at the largest radius but images of the
    class that gray is taken for: each of the others has gray as an adversarial example in its ball.

    Each radius starts from the clean images, so what fell at a smaller one is attacked again.
    """
    right = {0.0: clean, images.suite.epsilon: after_ce}
    right |= {radius: images.right_under_suite("apgd-ce", clean, radius) for radius in radii}
    counts = [int(right[radius].sum()) for radius in sorted(right)]
    gray_is_wrong = ~images.right(torch.full_like(images.x[:1], 0.5), images.y)
    missed = int((right[radii[-1]] & gray_is_wrong).sum())
    figures = ", ".join(
        f"{count} at {format_epsilon(radius)}" for count, radius in zip(counts, sorted(right), strict=True)
    )
    return Check(
        "accuracy falls with epsilon, to nothing",
        max(after - before for before, after in pairwise(counts)) <= images.chance and missed <= images.chance,
        f"apgd-ce leaves of {len(clean)} images {figures}, of which plain gray breaks {missed}",
    )


def _pgd(images: _Images, clean: Tensor, apgd: Tensor, robust: Tensor) -> Check:
    """PGD with restarts, of steps that make 2.5 epsilon in all (Madry et al. 2018), does not leave fewer images right
    than APGD, nor break what the suite left robust."""
    suite = images.suite
    spec = AttackSpec(suite.epsilon, 2.5 * suite.epsilon / PGD_STEPS, PGD_STEPS, suite.norm, start="uniform")
    generator = torch.Generator(images.x.device).manual_seed(suite.seed)

    def attack(x: Tensor, y: Tensor) -> Tensor:
        return images.right(
            perturb(images.queries, x, y, cross_entropy_per_image, spec, generator, uses_clean=False), y
        )

    right = clean
    for _ in range(PGD_RESTARTS):
        right = images.right_under(attack, right)
    left, of_apgd, missed = (int(which.sum()) for which in (right, apgd, robust & ~right))
    return Check(
        f"PGD-{PGD_STEPS} not better than APGD",
        left >= of_apgd - images.chance and missed <= images.chance,
        f"{PGD_RESTARTS} restarts leave {left} of {len(clean)} images right, apgd {of_apgd}, "
        f"the suite {int(robust.sum())}, of which PGD breaks {missed}",
    )


def _noise(images: _Images, clean: Tensor) -> Check:
    """A uniform draw from the ball (in so many dimensions that is its surface in l2) costs few points of accuracy.

    Noise must be about sqrt(D) times as long as an adversarial perturbation to reach a smooth boundary in D dimensions
    (Fawzi et al. 2016). A network that loses more than 5 points to it is jagged at this scale: its gradients say little
    about where it errs. Adversarially trained ones lose less than one.
    """
    suite = images.suite
    spec = AttackSpec(suite.epsilon, 0.0, 1, suite.norm, start="uniform")
    generator = torch.Generator(images.x.device).manual_seed(suite.seed)
    draws = [
        images.right_under(lambda x, y: images.right(starting_point(x, spec, generator), y)) for _ in range(NOISE_DRAWS)
    ]
    before, after = (100 * right.float().mean().item() for right in (clean, torch.stack(draws)))
    return Check(
        "noise hardly hurts",
        before - after <= NOISE_POINTS,
        f"clean {before:.2f}%, under uniform noise of {format_epsilon(suite.epsilon)} {after:.2f}% "
        f"in the mean of {NOISE_DRAWS} draws; up to {NOISE_POINTS:g} points less pass",
    )
