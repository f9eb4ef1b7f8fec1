"""Projected gradient ascent inside an l-inf or l2 ball: the inner maximisation of every method."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError
from utils.options import NORMS

STARTS = ("gaussian", "gaussian-clamped", "uniform", "clean")
MODES = ("eval", "train", "batch")
GAUSSIAN_START = 0.001  # standard deviation of the published start x + 0.001 N(0, 1)


@dataclass(frozen=True)
class AttackSpec:
    """How far and how often an attack steps.

    ``epsilon``, ``step_size`` and ``num_steps`` are numbers, or tensors (B,) with a value for each image.

    Attributes:
        epsilon: radius of the ball, in units of the pixel range [0, 1].
        step_size: length of one step, same units.
        num_steps: number of gradient steps, at least 1.
        norm: ``"linf"`` or ``"l2"``.
        start: ``"gaussian"`` is x + 0.001 N(0, 1), ``"gaussian-clamped"`` the same clamped to [0, 1], ``"uniform"`` a
            uniform draw from the ball, clamped to [0, 1], ``"clean"`` x itself.
        noise: standard deviation of the normal noise that is added to each step before the projection, same units.

    Raises:
        ValueError: an unknown norm or start.
    """

    epsilon: float | Tensor
    step_size: float | Tensor
    num_steps: int | Tensor
    norm: str = "linf"
    start: str = "gaussian"
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (("norm", NORMS), ("start", STARTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} {getattr(self, name)!r}: choose {', '.join(choices)}")

    def of(self, rows: slice | Tensor) -> "AttackSpec":
        """The settings of the images with these indices."""
        values = {name: getattr(self, name) for name in ("epsilon", "step_size", "num_steps")}
        return replace(self, **{name: v[rows] for name, v in values.items() if isinstance(v, Tensor)})


def normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) in the shape of a tensor."""
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """U(-1, 1) in the shape of a tensor."""
    return torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype) * 2 - 1


def starting_point(x: Tensor, spec: AttackSpec, generator: torch.Generator | None = None) -> Tensor:
    """Draw the start of an attack near x, (B, C, H, W), as ``spec.start`` says."""
    if spec.start == "clean":
        return x
    if spec.start.startswith("gaussian"):
        start = x + GAUSSIAN_START * normal(x, generator)
        return start.clamp(0, 1) if spec.start == "gaussian-clamped" else start
    epsilon = _per_image(spec.epsilon)
    if spec.norm == "linf":
        return (x + epsilon * uniform(x, generator)).clamp(0, 1)
    direction = normal(x, generator)
    radius = torch.rand((len(x), 1, 1, 1), generator=generator, device=x.device, dtype=x.dtype)
    radius = epsilon * radius ** (1 / x[0].numel())
    return (x + radius * direction / _l2_norm(direction)).clamp(0, 1)


def _per_image(value: float | Tensor) -> float | Tensor:
    """A number as it is; (B,) as (B, 1, 1, 1)."""
    return value.view(-1, 1, 1, 1) if isinstance(value, Tensor) else value


def clip(x: Tensor) -> Tensor:
    """x clamped to [0, 1] for autograd: the gradient is that of x inside, and 0 at 0, at 1 and beyond.

    That of ``Tensor.clamp`` at its bounds depends on PyTorch's version: 1 in 2.4, 0 in 2.14. Images have many
    pixels that are exactly 0 or 1.
    """
    return torch.where((x > 0) & (x < 1), x, x.detach().clamp(0, 1))


def _l2_norm(v: Tensor) -> Tensor:
    return v.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)


def pgd_step(x_adv: Tensor, gradient: Tensor, x: Tensor, spec: AttackSpec) -> Tensor:
    """One step along the gradient, projected on the epsilon-ball around x, clamped to [0, 1]."""
    epsilon, step_size = _per_image(spec.epsilon), _per_image(spec.step_size)
    if spec.norm == "linf":
        x_adv = x_adv + step_size * gradient.sign()
        x_adv = torch.min(torch.max(x_adv, x - epsilon), x + epsilon)
    else:
        delta = x_adv + step_size * gradient / _l2_norm(gradient) - x
        x_adv = x + delta * (epsilon / _l2_norm(delta)).clamp_max(1.0)
    return x_adv.clamp(0, 1)


Inner = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def perturb(
    forward: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    inner: Inner,
    spec: AttackSpec,
    generator: torch.Generator | None = None,
    start: Tensor | None = None,
    uses_clean: bool = True,
    moves: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    drop_stopped: bool = False,
    first: Inner | None = None,
    noise_rows: tuple[int, slice] | None = None,
    nat_logits: Tensor | None = None,
) -> Tensor:
    """Adversarial images by projected gradient ascent.

    Args:
        forward: images to logits (B, C), differentiable in the images. If ``inner`` uses the logits on x, they must not
            change during the attack: they are computed once, which is bit-identical to computing them in every step.
        x: clean images (B, 3, H, W) in [0, 1].
        y: labels (B,).
        inner: what to maximise, per image: ``inner(adv_logits, nat_logits, y) -> (B,)``.
        spec: how far and how often to step.
        generator: of all random numbers; torch's default one if None.
        start: a given start, shaped like x, in place of a drawn one.
        uses_clean: whether ``inner`` uses ``nat_logits``; otherwise it gets None.
        moves: which images take the next step: ``moves(logits on the present x', y, wrong) -> (B,) bool``, where
            ``wrong`` counts at how many steps so far, this one included, x' was misclassified; None is all of them.
            The attack ends when none does.
        drop_stopped: whether an image that did not move once never moves again, and is no longer computed. Only
            where the logits of an image do not depend on the others.
        first: what the first step maximises, if not ``inner``.
        noise_rows: of how many images the noise of the steps is drawn, and which of them these are; just these by
            default.
        nat_logits: logits (B, C) that ``inner`` gets in place of those on x.

    Returns:
        x' like x, detached: inside the epsilon-ball around x and [0, 1], but for an image that takes no step, which
        stays at its start.
    """
    if uses_clean and nat_logits is None:
        with torch.no_grad():
            nat_logits = forward(x)
    x_adv = starting_point(x, spec, generator) if start is None else start
    budget = spec.num_steps if isinstance(spec.num_steps, Tensor) else None
    rows: slice | Tensor = slice(None)  # the images that are computed
    wrong = torch.zeros_like(y)
    for k in range(spec.num_steps if budget is None else int(budget.max())):
        present, labels = x_adv[rows].detach().requires_grad_(), y[rows]
        with torch.enable_grad():
            # The sign, or the normalisation, makes the scale irrelevant: the sum serves as well as the mean.
            logits = forward(present)
            maximised = first if first is not None and k == 0 else inner
            value = maximised(logits, None if nat_logits is None else nat_logits[rows], labels).sum()
        (gradient,) = torch.autograd.grad(value, present)
        with torch.no_grad():
            noisy = present
            if spec.noise:
                of, part = noise_rows or (len(x), slice(None))
                noisy = present + spec.noise * normal(x.new_empty(of, *x.shape[1:]), generator)[part][rows]
            stepped = pgd_step(noisy, gradient, x[rows], spec.of(rows))
            if moves is None and budget is None:
                x_adv = stepped
                continue
            wrong = wrong + (logits.argmax(1) != labels)
            moving = torch.ones_like(labels, dtype=torch.bool) if moves is None else moves(logits, labels, wrong)
            if budget is not None:
                moving = moving & (k < budget[rows])
            if not moving.any():
                break
            stepped = torch.where(moving.view(-1, 1, 1, 1), stepped, present)
            x_adv = stepped if isinstance(rows, slice) else x_adv.index_copy(0, rows, stepped)
            if drop_stopped:
                rows, wrong = torch.arange(len(y), device=y.device)[rows][moving], wrong[moving]
    return x_adv.detach()


def check_attacked(images: Sequence[Tensor], attacked: Sequence[Tensor], spec: AttackSpec) -> None:
    """Check what an attack returned, to a hundredth of each pixel, which a start may be outside by.

    Raises:
        UserError: other shapes than those of the images, or outside the epsilon-ball or [0, 1].
    """
    for x, x_adv in zip(images, attacked, strict=False):  # none without an attack
        if x_adv.shape != x.shape:
            raise UserError(
                f"the attack returned {tuple(x_adv.shape)} for images of {tuple(x.shape)}: it must keep them"
            )
        if not len(x) or x.is_meta:
            continue
        moved = (x_adv - x).flatten(1)
        far = (moved.abs().amax() if spec.norm == "linf" else moved.norm(dim=1).amax()).item()
        outside = 0.01 if spec.norm == "linf" else 0.01 * moved.shape[1] ** 0.5
        if not (
            far <= 1.001 * float(torch.as_tensor(spec.epsilon).max()) + outside
            and x_adv.amin() >= -0.01
            and x_adv.amax() <= 1.01
        ):
            raise UserError("the attack left the epsilon-ball or [0, 1]: clamp what its step returns")


@contextmanager
def frozen(model: nn.Module, mode: str = "eval") -> Iterator[nn.Module]:
    """Freeze the model for an attack: its parameters need no gradient; restore modes and flags afterwards.

    Args:
        mode: ``"eval"``; ``"train"``, in which each pass updates the BatchNorm statistics, which is not undone; or
            ``"batch"``, in which BatchNorm normalises by the current batch and updates no statistics.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: choose {', '.join(MODES)}")
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
