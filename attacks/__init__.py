"""Attacks that training and its evaluation use. In a notebook: ``from attacks import pgd``."""

import torch
from torch import Tensor, nn

from attacks.pgd import AttackSpec, cross_entropy_per_image, frozen, perturb
from utils.options import NORMS, parse_epsilon, require

__all__ = ["pgd"]


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epsilon: float | str,
    norm: str = "linf",
    steps: int = 20,
    step_size: float | str | None = None,
    start: str = "uniform",
    seed: int = 0,
) -> Tensor:
    """Attack images by projected gradient ascent on the cross-entropy (Madry et al. 2018).

    For a quick look and for training. What is quoted as a robust accuracy is ``evaluation.evaluate``'s.

    Args:
        model: images in [0, 1] -> logits (B, K). It is in eval mode during the attack and left as it was found.
        x: (B, C, H, W) float in [0, 1]; y: (B,) int64 labels; both where the model is.
        epsilon: radius of the ball around each image, in units of x; ``"8/255"`` is read as such.
        norm: ``linf`` or ``l2``.
        steps: number of gradient steps, at least 1.
        step_size: length of a step; by default 2.5 epsilon / steps, with which an attack can cross the ball.
        start: ``uniform`` (drawn from the ball), ``gaussian`` (x + 0.001 N(0, 1)) or ``clean`` (x).
        seed: of the random start.

    Returns:
        x' like x, within epsilon of x and in [0, 1], detached.

    Raises:
        ValueError: x and y do not have these shapes, x is outside [0, 1], or an unknown start.
        UserError: an impossible epsilon, norm, step size or number of steps.
    """
    if x.dim() != 4 or y.shape != (len(x),) or len(x) == 0:
        raise ValueError(f"x must be (B, C, H, W) and y (B,), not {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.min() >= 0 and x.max() <= 1):
        raise ValueError("x must be in [0, 1]; put normalization into the model")
    require(norm in NORMS, f"norm {norm!r}: choose {' or '.join(NORMS)}")
    require(steps >= 1, f"{steps} steps: an attack needs at least 1")
    epsilon = parse_epsilon(epsilon, norm=norm)
    size = 2.5 * epsilon / steps if step_size is None else parse_epsilon(step_size, "step size", norm)
    spec = AttackSpec(epsilon, size, steps, norm, start)
    generator = torch.Generator(x.device).manual_seed(seed)
    with frozen(model):
        return perturb(model, x.detach(), y, cross_entropy_per_image, spec, generator, uses_clean=False)
