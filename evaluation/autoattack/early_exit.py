"""Early exit: images that an attack has broken are no longer queried.

``patch_attacks`` makes the attacks of pyautoattack announce each of their runs to an ``AttackedModel``. Why every
verdict stays as it is, but for the rounding of a faster network:

* APGD: the normalization of the gradient, the momentum, the step size, the best point and the test for oscillation are
  of each image alone. Random numbers are drawn once, at the start of a run, for all images that it attacks. The next
  run attacks an image unless an iterate, all of which lie in the ball, was misclassified, be it the first or the last.
  Under eot (``rand``) the last of several random answers decides: there all images are queried to the end.
* FAB: points, hyperplanes and projections are of each image alone; for a broken image the zero gradient makes its row
  0/0, and no other. Random numbers are drawn at the start of a run. The smallest misclassified point, which FAB keeps,
  only gets closer once one is in the ball.
* Square drops broken images by itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# An image counts as broken if the wrong class leads by this part of the largest logit: the final check runs in another
# batch and may round differently.
MIN_MARGIN = 1e-4


class AllImagesBroken(Exception):
    """All images are broken; the attack can stop."""


class EarlyExit:
    """Which images of one run of an attack are broken, and by which adversarial example.

    Row i of a query is image i: every query of a run of APGD or FAB holds all of its images.

    Args:
        x: clean images (N, C, H, W); y: labels (N,), which the network predicts.
        is_valid: of the points (N, C, H, W) of a query, which may be adversarial examples (N,); None: no early exit.

    Attributes:
        done: (N,) bool, the broken images.
        active: (M,) int64, the indices of the others; None is all.
        x_adv: (N, C, H, W), the adversarial example where done, else the clean image.
    """

    def __init__(self, x: Tensor, y: Tensor, is_valid: Callable[[Tensor], Tensor] | None):
        self.y, self.is_valid = y, is_valid
        self.x_adv = x.clone() if is_valid else x
        self.done = torch.zeros_like(y, dtype=torch.bool)
        self.active: Tensor | None = None
        self._logits: Tensor | None = None  # (N, K) of the latest query

    def merge(self, logits: Tensor) -> Tensor:
        """Scatter logits of the active images (M, K) into the full batch (N, K); others keep their last, detached."""
        return logits if self.active is None else self._logits.index_copy(0, self.active, logits)

    @torch.no_grad()
    def update(self, images: Tensor, logits: Tensor) -> None:
        """Record which images (N, C, H, W) of a query are broken, given all logits (N, K)."""
        if self.is_valid is None:
            return
        self._logits = logits.clone()
        broken = (margin(logits, self.y) > MIN_MARGIN * logits.abs().amax(1)) & self.is_valid(images) & ~self.done
        if broken.any():
            self.x_adv[broken] = images[broken]
            self.done |= broken
            self.active = (~self.done).nonzero().squeeze(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Largest wrong logit minus the logit of the label (N,), from logits (N, K) and labels (N,)."""
    own = y.unsqueeze(1)
    return logits.scatter(1, own, -torch.inf).amax(1) - logits.gather(1, own).squeeze(1)


def patch_attacks(front_end: Any, attacked_model: nn.Module) -> None:
    """Let the front end's attacks query ``attacked_model`` inside its ``during_attack``."""
    for attack in (front_end.apgd, front_end.apgd_targeted):
        _patch_apgd(attack, attacked_model)
    _patch_fab(front_end.fab, attacked_model)
    _patch_square(front_end.square, attacked_model)


def _patch_apgd(attack: Any, attacked_model: nn.Module) -> None:
    single_run = attack.attack_single_run
    is_valid = _everywhere if attack.eot_iter == 1 else None

    def attack_single_run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (x_best, is_robust, loss_best, x_best_adv) as APGD's own does."""
        with attacked_model.during_attack(x, y, is_valid) as early_exit:
            try:
                x_best, is_robust, loss_best, x_best_adv = single_run(x, y)
            except AllImagesBroken:  # no later run draws random numbers
                x_adv = early_exit.x_adv
                return x_adv, ~early_exit.done, torch.zeros(len(x), device=x.device), x_adv
        x_best_adv[early_exit.done] = early_exit.x_adv[early_exit.done]
        return x_best, is_robust, loss_best, x_best_adv

    attack.attack_single_run = attack_single_run


def _patch_fab(attack: Any, attacked_model: nn.Module) -> None:
    single_run = attack.attack_single_run

    def attack_single_run(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """Return the closest misclassified points, or the clean image where there is none, as FAB's own does."""
        is_valid = partial(_in_ball, x, attack.norm, attack.eps)
        # Without a target FAB takes the gradient of each class from one forward pass.
        with attacked_model.during_attack(x, y, is_valid, compiled=attack.targeted) as early_exit:
            try:
                x_adv = single_run(x, y, **options)
            except AllImagesBroken:  # no later run draws random numbers
                return early_exit.x_adv
        x_adv[early_exit.done] = early_exit.x_adv[early_exit.done]
        return x_adv

    attack.attack_single_run = attack_single_run


def _patch_square(attack: Any, attacked_model: nn.Module) -> None:
    margin_and_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = attack.margin_and_loss

    def patched(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with attacked_model.during_attack(x, y):
            return margin_and_loss(x, y)

    attack.margin_and_loss = patched


def _everywhere(images: Tensor) -> Tensor:
    return torch.ones(len(images), dtype=torch.bool, device=images.device)


def _in_ball(x: Tensor, norm: str, epsilon: float, images: Tensor) -> Tensor:
    if images.requires_grad:  # FAB uses the predictions of its queries without gradient only
        return torch.zeros(len(images), dtype=torch.bool, device=images.device)
    difference = (x - images).flatten(1)
    distance = difference.abs().amax(1) if norm == "Linf" else (difference**2).sum(1).sqrt()
    return distance <= epsilon
