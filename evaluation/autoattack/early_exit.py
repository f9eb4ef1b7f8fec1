"""The authors' attacks, watched while they run: their queries are fast ones, and settled images leave.

Why this leaves every verdict as it is, but for the rounding of a faster network:

* APGD: the normalization of the gradient, the momentum, the step size, the best point and the test for oscillation are
  of each image alone. Random numbers are drawn once, at the start of a run, for all images that are to fool then. An
  image is to fool in the next run unless an iterate, all of which lie in the ball, was misclassified, be it the first
  or the last of them. Under eot (``rand``) the last of several random answers decides: there nothing leaves.
* FAB: points, hyperplanes and projections are of each image alone; where an image has left, the zero gradient makes
  its row 0/0, and no other. Random numbers are drawn at the start of a run. The smallest misclassified point, which
  FAB keeps, only gets closer once one is in the ball.
* Square drops what it has fooled by itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evaluation.autoattack.attacked_model import AllImagesBroken, AttackedModel


def watch(front_end: Any, queries: AttackedModel) -> None:
    """Make the front end's attacks ask ``queries`` inside ``queries.watching``."""
    for attack in (front_end.apgd, front_end.apgd_targeted):
        _watch_apgd(attack, queries)
    _watch_fab(front_end.fab, queries)
    _watch_square(front_end.square, queries)


def _watch_apgd(attack: Any, queries: AttackedModel) -> None:
    single_run = attack.attack_single_run
    counts = _everywhere if attack.eot_iter == 1 else None

    def attack_single_run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Best points, which images stood, their losses, and the misclassified points."""
        with queries.watching(x, y, counts) as run:
            try:
                best, stood, loss, found = single_run(x, y)
            except AllImagesBroken:  # no run follows that would draw random numbers
                return run.points, ~run.left, torch.zeros(len(x), device=x.device), run.points
        found[run.left] = run.points[run.left]
        return best, stood, loss, found

    attack.attack_single_run = attack_single_run


def _watch_fab(attack: Any, queries: AttackedModel) -> None:
    single_run = attack.attack_single_run

    def attack_single_run(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """The closest misclassified points; the image itself where there is none."""
        with queries.watching(x, y, partial(_in_ball, x, attack.norm, attack.eps)) as run:
            try:
                found = single_run(x, y, **options)
            except AllImagesBroken:  # no run follows that would draw random numbers
                return run.points
        found[run.left] = run.points[run.left]
        return found

    attack.attack_single_run = attack_single_run


def _watch_square(attack: Any, queries: AttackedModel) -> None:
    margin_and_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = attack.margin_and_loss

    def watched(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with queries.watching(x, y):
            return margin_and_loss(x, y)

    attack.margin_and_loss = watched


def _everywhere(images: Tensor) -> Tensor:
    return torch.ones(len(images), dtype=torch.bool, device=images.device)


def _in_ball(x: Tensor, norm: str, epsilon: float, images: Tensor) -> Tensor:
    if images.requires_grad:  # FAB looks at the predictions of its queries without gradient alone
        return torch.zeros(len(images), dtype=torch.bool, device=images.device)
    difference = (x - images).flatten(1)
    distance = difference.abs().amax(1) if norm == "Linf" else (difference**2).sum(1).sqrt()
    return distance <= epsilon
