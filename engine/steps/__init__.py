"""Training steps: the work on one batch, and the wrappers that make any step fast.

A step gets one batch at a time, and no epochs, files or flags. To add one, write a file with a subclass of
``StandardStep`` and name it in ``STEPS``; a method chooses it by ``Objective.step``.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attacks.pgd import AttackSpec
from engine.steps.cuda_graph import EagerFallback, GraphedStep
from engine.steps.free import FreeStep
from engine.steps.joint_views import JointViewsStep
from engine.steps.local import LocalStatistics
from engine.steps.standard import StandardStep
from engine.steps.yopo import TRADESYOPOStep, YOPOStep
from losses.base import PASSES, Objective
from models.accelerate import AcceleratedModel, AccelerationConfig, is_known
from models.batchnorm import synchronise_batch_norm
from utils.distributed import ProcessGroup
from utils.errors import UserError

OF_THE_ATTACK = ("inner_uses_guide", "moves", "first_inner", "step_noise")  # of no use where a step has its own


class Step(Protocol):
    """What the training loop needs of a step. ``create_step`` needs more of a class: the class attributes ``ignores``
    and ``own_attack``, and the arguments of ``StandardStep``.

    Attributes:
        student, guide: the networks that it trains; guide is None where the method has none.
        updates_per_batch: optimizer steps a batch; schedules that count updates need it.
        capturable: whether everything up to the gradients may become a CUDA graph with the present settings: fixed
            work, no wait for the device, no random numbers but those of the attack's start. Such a step also has
            ``objective``, ``attack``, ``optimizer``, ``x_adv``, ``draw_starts`` and ``up_to_gradients``; see
            ``StandardStep``.
    """

    student: AcceleratedModel
    guide: AcceleratedModel | None
    updates_per_batch: int
    capturable: bool

    def set_epoch(self, attack: AttackSpec, awp_gamma: float) -> None:
        """Set the inner maximisation and the size of the weight perturbation, from now on."""

    def set_rates(self, rates: Sequence[dict[str, float]]) -> None:
        """Set learning rate and momentum of each of the next batch's updates: ``{"lr": ..., "momentum": ...}``."""

    def __call__(
        self, views: Sequence[Tensor], y: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Train on one batch, together with the other processes: each gets the whole batch and works on its rows.

        Args:
            views: clean images (B, 3, H, W) in [0, 1], the same ones in one or several views.
            y: labels (B,).
            generator: of all random numbers of the step.

        Returns:
            The detached terms, whose sum is the loss; those of a second view end in ``_view2``.
        """

    def state_dict(self) -> dict[str, Any]:
        """What the step carries from batch to batch: tensors by name, for the checkpoint; the same in all processes."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""


STEPS: dict[str, Callable[..., Step]] = {
    "standard": StandardStep,
    "free": FreeStep,
    "yopo": YOPOStep,
    "trades-yopo": TRADESYOPOStep,
    "joint-views": JointViewsStep,
}


def check_method(
    objective: Objective, step: Callable[..., Step], guide: nn.Module | None, optimizer: torch.optim.Optimizer
) -> None:
    """Raises: UserError: a member of the objective is misspelt, or without effect in its step, guide or optimizer."""
    name = type(objective).__name__
    for declared in (*objective.passes, *objective.awp_passes, *objective.after_update):
        kind, *suffix = declared.split(".", 1)
        if kind not in PASSES or suffix not in ([], ["no_grad"]):
            raise UserError(f"{name} has a pass {declared!r}: choose {', '.join(PASSES)}, with .no_grad or without")
    ignored = (*step.ignores, *(OF_THE_ATTACK if step.own_attack else ()))
    if unused := [member for member in ignored if getattr(type(objective), member) != getattr(Objective, member)]:
        raise UserError(f"{name}.{unused[0]} has no effect in the step {objective.step!r}: remove it")
    if objective.inner_uses_guide and guide is None:
        raise UserError(f"the attack of {name} uses a guide, and no pass of it does: add one to passes")
    if (objective.bn_momentum or getattr(objective, "wide", 0)) and not optimizer.defaults.get("momentum"):
        raise UserError(f"{name} tells its first update by the momentum it leaves: set --momentum above 0")


def create_step(
    student: nn.Module,
    guide: nn.Module | None,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    attack: AttackSpec,
    *,
    awp_gamma: float = 0.0,
    view_weights: Sequence[float] = (1.0,),
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    acceleration: AccelerationConfig = AccelerationConfig(),  # noqa: B008 (frozen)
    group: ProcessGroup = ProcessGroup(),  # noqa: B008 (one process, without state)
    batch_norm: str = "synchronised",
    accumulate: int = 1,
) -> Step:
    """The step that the objective asks for, made fast.

    Args:
        student: the network to make robust; guide: the natural classifier, or None where the method has no guide pass.
        optimizer: one optimizer over student and guide.
        attack: the inner maximisation of the first epoch.
        awp_gamma: size of the adversarial weight perturbation, above 0 also where it starts in a later epoch.
        view_weights: weights of the losses of the views.
        autocast: makes the context in which forward passes run (mixed precision); losses are computed in float32.
        acceleration: how the forward passes run; no choice changes the mathematics.
        group: the processes that share each batch.
        batch_norm: of several processes, statistics of the whole batch (``synchronised``), or of each process's rows
            (``local``).
        accumulate: into how many parts a batch is divided that run one after the other.

    Raises:
        UserError: settings, or members of the objective, that its step has no use for.
    """
    if objective.step not in STEPS:
        raise UserError(f"{type(objective).__name__} has the step {objective.step!r}: choose {', '.join(STEPS)}")
    chosen = STEPS[objective.step]
    check_method(objective, chosen, guide, optimizer)
    if chosen.own_attack and attack.norm != "linf":
        raise UserError(f"--norm {attack.norm} is not for {objective.step}: its attack is of l-inf")
    if chosen.own_attack and (awp_gamma or any(view_weights[1:]) or accumulate > 1):
        raise UserError(
            f"--awp-gamma, --augment-view-weight and --accumulate are not for {objective.step}: leave them out"
        )
    if objective.bn_sets > 1:  # a compiled forward holds on to one set
        acceleration = replace(acceleration, compile_batch_size=0, cuda_graphs=False)
    # Where the shapes stay the same, let cuDNN time its algorithms once.
    torch.backends.cudnn.benchmark = not (objective.moves or torch.are_deterministic_algorithms_enabled())
    if group.size > 1 and batch_norm == "synchronised":
        if objective.moves and objective.attack_mode != "eval":  # one process would wait for another's statistics
            raise UserError(
                f"an attack of {type(objective).__name__} may stop early in one process: add --batch-norm local"
            )
        for net in filter(None, (student, guide)):
            if any(p.requires_grad for p in net.parameters()):
                synchronise_batch_norm(net, group)
    networks = [AcceleratedModel(net, acceleration, autocast) if net is not None else None for net in (student, guide)]
    step = chosen(*networks, objective, optimizer, attack, awp_gamma, view_weights, group, accumulate)
    if acceleration.compile_batch_size:
        step = EagerFallback(step)
    if acceleration.cuda_graphs and all(is_known(net) for net in (student, guide) if net is not None):
        step = GraphedStep(step, acceleration.compile_batch_size)
    if group.size > 1 and batch_norm == "local":
        step = LocalStatistics(step, group)
    return step
