"""AWP: adversarial weight perturbation (Wu, Xia and Wang, NeurIPS 2020), for any method.

The published program gives a copy of the student one plain SGD ascent step on the method's loss and takes the
difference as the direction, scaled to each weight's norm. The scaling cancels the learning rate of that step, so the
direction is that of the gradient: it is computed here on the student itself, without a copy and a second optimizer.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.errors import UserError

SMALL = 1e-20  # keeps the direction of a weight without gradient 0


def perturbed_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights to perturb, by name: trained ones of more than one dimension, so no BatchNorm and no bias.

    Raises:
        UserError: there are none, or some are computed from others (``torch.nn.utils.parametrizations``).
    """
    named = dict(model.named_parameters())
    found = {name: p for name, p in named.items() if name.endswith("weight") and p.dim() > 1 and p.requires_grad}
    if not found or any("parametrizations." in name for name in named):
        raise UserError("weight perturbation is of plain weights, which this network lacks: set --awp-gamma 0")
    return found


def weight_gradients(loss: Tensor, weights: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of a loss in the weights; 0 in those that it does not depend on."""
    return list(torch.autograd.grad(loss, list(weights), allow_unused=True, materialize_grads=True))


def directions(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
    """Scale each loss gradient to the norm of its weight: |w| / (|g| + 1e-20) g."""
    return [w.norm() / (g.norm() + SMALL) * g for w, g in zip(weights, gradients, strict=True)]


def named_directions(
    weights: Mapping[str, nn.Parameter], gradients: Sequence[Tensor]
) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Each weight and its direction, by name."""
    found = zip(weights.items(), directions(list(weights.values()), gradients), strict=True)
    return {name: (w, v) for (name, w), v in found}


@contextmanager
def perturbed(weights: Sequence[Tensor], direction: Sequence[Tensor], gamma: float) -> Iterator[None]:
    """Add gamma v to the weights w within the context, and remove it afterwards.

    What an optimizer step within the context adds is kept. The perturbation is removed by stored copies, not as gamma
    v: without an optimizer step the weights are bit-identical to before.
    """
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        torch._foreach_add_(weights, direction, alpha=gamma)
    moved = [w.detach().clone() for w in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_sub_(weights, moved)
            torch._foreach_add_(weights, before)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers (BatchNorm statistics) afterwards."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
