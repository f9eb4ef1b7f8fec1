"""What a training method is: the contract between the losses and the engine."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor, nn

from utils.errors import UserError

FROZEN_PASSES = ("helper", "frozen")
PASSES = ("adv", "nat", "guide", "far", *FROZEN_PASSES)
MOST_WHOLE = 1_000_000


@dataclass(frozen=True)
class Parameter:
    """A hyper-parameter of a method: it becomes a flag of the command line and an attribute of the objective.

    Attributes:
        name: ``view_weight`` is the flag ``--view-weight`` and the attribute ``self.view_weight``.
        default: of the flag; methods that share a name may have different defaults.
        help: a phrase for ``--help``.
        at_least, above: the lower bound of the range, inclusive or exclusive.
        whole: whether only whole numbers are in the range.
    """

    name: str
    default: float
    help: str
    at_least: float = 0.0
    above: float | None = None
    whole: bool = False

    @property
    def range(self) -> str:
        if self.whole:
            return f"a whole number of {self.at_least:g} or more, up to {MOST_WHOLE}"
        if self.above is not None:
            return f"above {self.above:g}"
        return f"at least {self.at_least:g}" if self.at_least else "0 or more"

    def check(self, value: float) -> float:
        """Return the value as a float if it is a finite number in the range.

        Raises:
            UserError: it is not.
        """
        try:
            number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        except OverflowError:  # of a huge integer
            number = math.inf
        inside = number >= self.at_least if self.above is None else number > self.above
        whole = not self.whole or (number <= MOST_WHOLE and number == int(number))
        if not (inside and number < math.inf and whole):
            shown = f"{value:g}" if isinstance(value, float) else repr(value)[:40]
            raise UserError(f"--{self.name.replace('_', '-')} {shown} must be {self.range}")
        return number


class Objective(nn.Module):
    """A method in three members: ``passes``, ``inner`` and ``outer``.

    State that a method carries belongs in buffers: a checkpoint keeps them through ``state_dict``. Change it only
    in ``after_step`` and ``end_epoch``, since weight perturbation evaluates ``outer`` more than once a step.

    Args:
        num_classes: C; only a method with a state of that size needs it.
        label_smoothing: of ``self.cross_entropy``, for the cross-entropies that ``outer`` minimises; in [0, 1).
        values: of ``parameters``, by name; the others have their defaults.

    Raises:
        UserError: a value is outside of its range, or of no parameter of this method.

    Attributes:
        parameters: the method's own hyper-parameters.
        tag: names the runs of the method, with parameters in braces: ``"trades{beta:g}"``.
        passes: the train-mode forward passes that the method needs, in the order in which the published program makes
            them, since each moves the BatchNorm statistics: ``"adv"`` is f(x'), ``"nat"`` f(x) and ``"guide"`` g(x).
            A name with the suffix ``".no_grad"`` is a pass that only moves the statistics. Without an ``"adv"`` pass
            no attack is run. ``"far"`` is f(x + h (x' - x)) with h = ``self.h``; ``"helper"`` is the guide on x',
            and ``"frozen"`` the guide on x, as a frozen network in eval mode that is not trained.
        after_update: passes that only move the statistics, made with the new weights.
        start: where the attack starts; see ``attacks.pgd.AttackSpec``.
        attack_mode: the student's mode in the attack; see ``attacks.pgd.frozen``.
        step_noise: standard deviation of the noise in each step of the attack; see ``attacks.pgd.AttackSpec``.
        inner_uses_clean: whether ``inner`` uses ``nat_logits``.
        inner_uses_guide: whether ``inner`` gets g(x) of the guide in eval mode as its ``nat_logits``.
        moves: ``moves(adv_logits, y, wrong) -> (B,) bool``, which images take the next step of the attack; see
            ``attacks.pgd.perturb``. None is all of them.
        first_inner: ``first_inner(adv_logits, nat_logits, y, u) -> (B,)``, what the attack maximises in one step more,
            before the others, given u = U(-1, 1), (B, C). None is no such step.
        bn_momentum: BatchNorm's momentum, but in the first update, where it is 1; 0 leaves the network's.
        bn_sets: how many sets of BatchNorm layers the student has, which share all other weights.
        views: how many views of each image the method needs, the second and later ones augmented; see ``step``.
        awp_passes: the passes in a run with adversarial weight perturbation; ``passes`` where empty. A class with
            ``passes`` of its own does not inherit them.
        step: which training step runs the method; see ``engine.steps.STEPS``.
        source: the paper, for ``--help`` and reports.
    """

    parameters: ClassVar[tuple[Parameter, ...]] = ()
    tag: ClassVar[str]
    passes: tuple[str, ...]
    awp_passes: tuple[str, ...] = ()
    after_update: ClassVar[tuple[str, ...]] = ()
    step: ClassVar[str] = "standard"
    start: ClassVar[str] = "gaussian"
    attack_mode: ClassVar[str] = "eval"
    step_noise: float = 0.0
    inner_uses_clean: ClassVar[bool] = False
    inner_uses_guide: ClassVar[bool] = False
    moves: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    first_inner: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None
    bn_momentum: float = 0.0
    bn_sets: ClassVar[int] = 1
    views: ClassVar[int] = 1
    source: ClassVar[str]

    def __init_subclass__(cls, **kwargs) -> None:
        super().__init_subclass__(**kwargs)
        first = next(base for base in cls.__mro__ if vars(base).keys() & {"passes", "awp_passes"})
        if "awp_passes" not in vars(first):
            cls.awp_passes = ()

    def __init__(self, num_classes: int = 0, label_smoothing: float = 0.0, **values: float):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        for name, value in self.complete(values).items():
            setattr(self, name, value)

    @classmethod
    def complete(cls, values: Mapping[str, float]) -> dict[str, float]:
        """Return every parameter of the method: the given values, checked, and the defaults of the others.

        Raises:
            UserError: a value is outside of its range, or of no parameter of this method.
        """
        declared = {p.name: p for p in cls.parameters}
        if unknown := [name for name in values if name not in declared]:
            raise UserError(
                f"{cls.__name__} has no parameter {', '.join(unknown)}: it has {', '.join(declared) or 'none'}"
            )
        return {name: p.check(values.get(name, p.default)) for name, p in declared.items()}

    def inner(self, adv_logits: Tensor, nat_logits: Tensor | None, y: Tensor) -> Tensor:
        """What the attack maximises.

        Args:
            adv_logits: f(x'), (B, C), student in eval mode.
            nat_logits: f(x), (B, C), computed once per attack without gradient; None unless ``inner_uses_clean``, and
                g(x) where ``inner_uses_guide``.
            y: labels (B,), int64.

        Returns:
            One value per image, (B,).
        """
        raise TypeError(f"{type(self).__name__} trains without an attack")

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Named scalar terms, each weighted as it counts; training minimises their sum.

        Args:
            logits: by pass name, each (B, C), train mode. A ``".no_grad"`` pass puts nothing here.
            y: labels (B,), int64.
        """
        raise TypeError(f"{type(self).__name__} does not define outer()")

    def after_step(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        """Called once a step (with ``--accumulate`` once a part), after the gradients, without gradient, with the
        logits (detached) of the loss.

        On CUDA it is captured into the step's graph: change tensors in place, and use no Python state and no .item().
        """

    def begin_epoch(self, epoch: int) -> None:
        """Called at the start of each epoch (1, 2, ...), and when a run resumes in it: sets what depends on the epoch
        alone: an int or float in an attribute (not in a list), or a tensor changed in place."""

    def end_epoch(self) -> None:
        """Called once after the last step of each epoch."""


def kl_per_image(nat_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """KL(softmax(nat) || softmax(adv)) of each image: (B, C), (B, C) -> (B,), in nats."""
    # With softmax, not log_target: near x' = x the gradient is p(x') - p(x), all rounding, and the published program
    # rounds it so.
    return nn.functional.kl_div(adv_logits.log_softmax(1), nat_logits.softmax(1), reduction="none").sum(1)


def smooth_labels(y: Tensor, like: Tensor, smoothing: float) -> Tensor:
    """Labels (B,) as distributions like ``like`` (B, C): 1 - s for the label and s / (C - 1) for each other class."""
    other = smoothing / (like.shape[1] - 1)
    return torch.full_like(like, other).scatter(1, y[:, None], 1 - smoothing)
