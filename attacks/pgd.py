"""Projected gradient ascent inside an l-inf or l2 ball: the inner maximisation of every method."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STARTS = ("gaussian", "uniform", "clean")
GAUSSIAN_START = 0.001  # standard deviation of the published start x + 0.001 N(0, 1)


@dataclass(frozen=True)
class AttackSpec:
    """How far and how often an attack steps.

    Attributes:
        epsilon: radius of the ball, in units of the pixel range [0, 1].
        step_size: length of one step, same units.
        num_steps: number of gradient steps, at least 1.
        norm: ``"linf"`` or ``"l2"``.
        start: ``"gaussian"`` is x + 0.001 N(0, 1), ``"uniform"`` a uniform draw from the ball, clamped to [0, 1],
            ``"clean"`` x itself.
    """

    epsilon: float
    step_size: float
    num_steps: int
    norm: str = "linf"
    start: str = "gaussian"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise ValueError(f"start {self.start!r}: choose {', '.join(STARTS)}")


def starting_point(x: Tensor, spec: AttackSpec, generator: torch.Generator | None = None) -> Tensor:
    """Draw the start of an attack near x, (B, C, H, W), as ``spec.start`` says."""
    if spec.start == "clean":
        return x
    if spec.start == "gaussian":
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return x + GAUSSIAN_START * noise
    if spec.norm == "linf":
        noise = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype) * 2 - 1
        return (x + spec.epsilon * noise).clamp(0, 1)
    direction = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    radius = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device, dtype=x.dtype)
    radius = spec.epsilon * radius ** (1 / x[0].numel())
    return (x + radius * direction / _l2_norm(direction)).clamp(0, 1)


def _l2_norm(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def pgd_step(x_adv: Tensor, gradient: Tensor, x: Tensor, spec: AttackSpec) -> Tensor:
    """One step along the gradient, projected on the epsilon-ball around x, clamped to [0, 1]."""
    if spec.norm == "linf":
        x_adv = x_adv + spec.step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - spec.epsilon), x + spec.epsilon)
    else:
        delta = x_adv + spec.step_size * gradient / _l2_norm(gradient) - x
        x_adv = x + delta * (spec.epsilon / _l2_norm(delta)).clamp_max(1.0)
    return x_adv.clamp(0, 1)


def perturb(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    inner: Callable[[Tensor, Tensor | None, Tensor], Tensor],
    spec: AttackSpec,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    uses_clean: bool = True,
    moves: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Adversarial images by projected gradient ascent.

    Args:
        forward: images to logits (B, C), differentiable in the images. Its logits on x must not change during the
            attack (eval mode): they are computed once, which is bit-identical to computing them in every step.
        x: clean images (B, 3, H, W) in [0, 1].
        y: labels (B,).
        inner: what to maximise, per image: ``inner(adv_logits, nat_logits, y) -> (B,)``.
        spec: how far and how often to step.
        generator: of the start's random numbers; torch's default one if None.
        start: a given start, shaped like x, in place of a drawn one.
        uses_clean: whether ``inner`` uses ``nat_logits``; otherwise it gets None.
        moves: which images take the next step: ``moves(logits on the present x', y) -> (B,) bool``; None is all.

    Returns:
        x' like x, inside the epsilon-ball around x and [0, 1], detached.
    """
    nat_logits = None
    if uses_clean:
        with torch.no_grad():
            nat_logits = forward(x)
    x_adv = starting_point(x, spec, generator) if start is None else start
    for _ in range(spec.num_steps):
        x_adv = x_adv.detach().requires_grad_()
        with torch.enable_grad():
            # The sign, or the normalisation, makes the scale irrelevant: the sum serves as well as the mean.
            logits = forward(x_adv)
            value = inner(logits, nat_logits, y).sum()
        (gradient,) = torch.autograd.grad(value, x_adv)
        with torch.no_grad():
            stepped = pgd_step(x_adv, gradient, x, spec)
            x_adv = stepped if moves is None else torch.where(moves(logits, y).view(-1, 1, 1, 1), stepped, x_adv)
    return x_adv.detach()


@contextmanager
def frozen(model: nn.Module, mode: str = "eval") -> Iterator[nn.Module]:
    """Freeze the model for an attack: its parameters need no gradient; restore modes and flags afterwards.

    Args:
        mode: ``"eval"``; ``"train"``, in which each pass updates the BatchNorm statistics, which is not undone; or
            ``"batch"``, in which BatchNorm normalises by the current batch and updates no statistics.
    """
    modes = [(module, module.training) for module in model.modules()]
    tracking = [m for m in model.modules() if getattr(m, "track_running_stats", False)] if mode == "batch" else []
    trainable = [p for p in model.parameters() if p.requires_grad]
    model.train(mode != "eval")
    for module in tracking:
        module.track_running_stats = False
    for p in trainable:
        p.requires_grad_(False)
    try:
        yield model
    finally:
        for module in tracking:
            module.track_running_stats = True
        for module, training in modes:
            module.training = training
        for p in trainable:
            p.requires_grad_(True)


def pgd20(epsilon: float, norm: str = "linf") -> AttackSpec:
    """20 steps from a uniform start: of 0.003 in l-inf, as published for epsilon 0.031 and 8/255, or of epsilon / 11
    where that is longer (20 steps of 0.003 do not cross a large ball); of epsilon / 10 in l2."""
    step_size = max(0.003, epsilon / 11) if norm == "linf" else epsilon / 10
    return AttackSpec(epsilon, step_size, 20, norm, start="uniform")


def cross_entropy_per_image(adv_logits: Tensor, nat_logits: Tensor | None, y: Tensor) -> Tensor:
    return F.cross_entropy(adv_logits, y, reduction="none")
