"""The standard step: attack the student, run the method's forward passes in order, minimise the sum of its terms."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attacks.awp import directions, perturbed, perturbed_weights, statistics_kept
from attacks.pgd import AttackSpec, frozen, perturb, starting_point, uniform
from losses.base import Objective
from models.accelerate import AcceleratedModel
from utils.errors import UserError

Logits = dict[str, Tensor]  # by forward pass


def set_rates(optimizer: torch.optim.Optimizer, rates: dict[str, float]) -> None:
    """Set the learning rate and the momentum of the next update, ``{"lr": ..., "momentum": ...}``."""
    for group in optimizer.param_groups:
        group.update(rates)


def refuse_beyond_linf(step: "StandardStep", method: str) -> None:
    """Raises: UserError: settings that are not of a method with an l-inf attack of its own on plain images."""
    if step.attack.norm != "linf":
        raise UserError(f"--norm {step.attack.norm} is not for {method}: its attack is of l-inf")
    if step.awp_gamma or any(step.view_weights[1:]):
        raise UserError(f"--awp-gamma and --augment-view-weight are not for {method}: leave them out")


class StandardStep:
    """One attack and one optimizer step a batch; see ``engine.steps.Step`` for the contract.

    Args:
        student: the network to make robust; guide: the natural classifier, or None where the method has no guide pass.
        objective: the method.
        optimizer: one optimizer over student and guide.
        attack: the inner maximisation.
        awp_gamma: size of the adversarial weight perturbation of the student; 0 is none. The guide is not perturbed. A
            run with weight perturbation starts with it above 0: its forward passes are ``objective.awp_passes`` even
            in the epochs before the perturbation sets in.
        view_weights: weights of the losses of the views.

    Attributes:
        x_adv: x' of each view of the latest batch that ran eagerly (a replayed CUDA graph does not set it); empty
            without an attack.
    """

    updates_per_batch = 1

    def __init__(
        self,
        student: AcceleratedModel,
        guide: AcceleratedModel | None,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        attack: AttackSpec,
        awp_gamma: float = 0.0,
        view_weights: Sequence[float] = (1.0,),
    ):
        self.student, self.guide, self.objective, self.optimizer = student, guide, objective, optimizer
        self.attack, self.awp_gamma, self.view_weights = attack, awp_gamma, view_weights
        self.passes = (awp_gamma > 0 and objective.awp_passes) or objective.passes
        self.x_adv: list[Tensor] = []

    @property
    def capturable(self) -> bool:
        # The optimizer steps at the perturbed weights; an attack may wait for the device or draw random numbers.
        chosen = self.objective
        return not (self.awp_gamma or chosen.moves or chosen.first_inner or chosen.step_noise or chosen.after_update)

    def set_epoch(self, attack: AttackSpec, awp_gamma: float) -> None:
        self.attack, self.awp_gamma = attack, awp_gamma

    def set_rates(self, rates: Sequence[dict[str, float]]) -> None:
        set_rates(self.optimizer, rates[0])

    def __call__(
        self, views: Sequence[Tensor], y: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        views = [self.student.in_memory_order(x) for x in views]
        self._set_bn_momentum()
        self.x_adv = self.adversarial(views, y, self.draw_starts(views, generator), generator)
        terms = self.update(views, y)
        self._set_bn_momentum()  # the next batch may be a CUDA graph, which does not come through here
        for i, x in enumerate(views):
            self.run_passes(self.objective.after_update, i, x, {})
        return terms

    def _set_bn_momentum(self) -> None:
        """Set the momentum that the objective names: in the first update the statistics are those of the batch."""
        if not self.objective.bn_momentum:
            return
        for module in self.student.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.objective.bn_momentum if self.optimizer.state else 1.0

    def update(self, views: Sequence[Tensor], y: Tensor) -> dict[str, Tensor]:
        """Take one optimizer step on the method's outer loss at ``x_adv``. Returns the detached terms."""
        logits: list[Logits] = [{} for _ in views]
        with self._perturbation(views, y, logits) if self.awp_gamma else nullcontext():
            terms = self.gradients(views, y, logits)
            self.optimizer.step()
        return terms

    def draw_starts(self, views: Sequence[Tensor], generator: torch.Generator | None) -> list[Tensor]:
        """Draw the start of the attack on each view; none without an attack. These are all random numbers of a step."""
        if "adv" not in self.objective.passes:
            return []
        return [starting_point(x, self.attack, generator) for x in views]

    def up_to_gradients(self, y: Tensor, views: Sequence[Tensor], starts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Attack and compute the gradients without stepping: what a CUDA graph captures. Returns the detached terms."""
        self.x_adv = self.adversarial(views, y, starts)
        return self.gradients(views, y, [{} for _ in views])

    def adversarial(
        self, views: Sequence[Tensor], y: Tensor, starts: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> list[Tensor]:
        """x' of each view by the method's inner maximisation; none without starts."""
        return [self.attack_view(x, y, start, generator) for x, start in zip(views, starts, strict=bool(starts))]

    def attack_view(self, x: Tensor, y: Tensor, start: Tensor, generator: torch.Generator | None) -> Tensor:
        """x' of one view, from a start; the student is in the mode that the objective names."""
        chosen, spec, first = self.objective, self.attack, None
        if chosen.step_noise:
            spec = replace(spec, noise=chosen.step_noise)
        if chosen.first_inner:
            spec = replace(spec, num_steps=spec.num_steps + 1)

            def first(adv_logits: Tensor, nat_logits: Tensor, y: Tensor) -> Tensor:
                return chosen.first_inner(adv_logits, nat_logits, y, uniform(nat_logits, generator))

        evaluated = chosen.attack_mode == "eval"
        if evaluated:
            self.student.refresh()
        with frozen(self.student.model, chosen.attack_mode):
            return perturb(
                self.student.attack_logits if evaluated else self.student.train_logits,
                x,
                y,
                chosen.inner,
                spec,
                generator=generator,
                start=start,
                uses_clean=chosen.inner_uses_clean,
                moves=chosen.moves,
                stopped_leave=evaluated,
                first=first,
            )

    def gradients(self, views: Sequence[Tensor], y: Tensor, logits: list[Logits]) -> dict[str, Tensor]:
        """Compute the gradients of the outer loss, summed over the views, and call the objective's ``after_step``.

        Args:
            logits: for each view, those of passes that need not be run; the others are added.

        Returns:
            The detached terms.
        """
        terms = {}
        self.optimizer.zero_grad(set_to_none=True)
        for i in range(len(views)):
            weighted = self.outer(self.passes, i, views[i], y, logits[i])
            sum(weighted.values()).backward()
            terms |= {name if i == 0 else f"{name}_view{i + 1}": term.detach() for name, term in weighted.items()}
        with torch.no_grad():
            self.objective.after_step({name: value.detach() for name, value in logits[0].items()}, y)
        return terms

    def outer(self, passes: Iterable[str], i: int, x: Tensor, y: Tensor, logits: Logits) -> dict[str, Tensor]:
        """The method's terms of view i, weighted.

        Args:
            passes: forward passes to run, in this order.
            logits: by pass; those that are there already are not run, the others are added.
        """
        self.run_passes(passes, i, x, logits)
        return {name: self.view_weights[i] * term for name, term in self.objective.outer(logits, y).items()}

    def run_passes(self, passes: Iterable[str], i: int, x: Tensor, logits: Logits) -> None:
        """Make forward passes on view i; see ``Objective.passes``, and ``outer`` for the logits."""
        for name in passes:
            kind, _, only_statistics = name.partition(".")
            if name in logits:
                continue
            if kind == "helper":
                with torch.no_grad(), frozen(self.guide.model):
                    self.guide.refresh()
                    logits[name] = self.guide.attack_logits(self.x_adv[i])
                continue
            images = self.x_adv[i] if kind in ("adv", "far") else x
            if kind == "far":
                images = x + self.objective.h * (images - x)
            network = self.guide if kind == "guide" else self.student
            network.model.train()
            with torch.set_grad_enabled(torch.is_grad_enabled() and not only_statistics):
                out = network.train_logits(images)
            if not only_statistics:
                logits[name] = out

    def _perturbation(self, views: Sequence[Tensor], y: Tensor, logits: list[Logits]) -> AbstractContextManager:
        """The context in which the student's weights are perturbed. The guide's passes, which the perturbation does not
        change, are run here and added to ``logits``."""
        if "guide" in self.passes:
            self.guide.model.train()
            for x, known in zip(views, logits, strict=True):
                known["guide"] = self.guide.train_logits(x)
        direction = self.awp_direction(views, y, [{n: v.detach() for n, v in known.items()} for known in logits])
        return perturbed([w for w, _ in direction.values()], [v for _, v in direction.values()], self.awp_gamma)

    def awp_direction(
        self, views: Sequence[Tensor], y: Tensor, logits: list[Logits]
    ) -> dict[str, tuple[nn.Parameter, Tensor]]:
        """Where the loss of the views grows fastest: each perturbed weight of the student, and a direction of its norm.

        Args:
            logits: for each view, those of passes that need not be run, without gradient.
        """
        weights = perturbed_weights(self.student.model)
        # Logits in train mode do not depend on the statistics: passes that only move them are left out.
        passes = [name for name in self.passes if not name.endswith(".no_grad")]
        gradients = [torch.zeros_like(w) for w in weights.values()]
        with statistics_kept(self.student.model):
            for i, (x, known) in enumerate(zip(views, logits, strict=True)):
                loss = sum(self.outer(passes, i, x, y, known).values())
                torch._foreach_add_(gradients, torch.autograd.grad(loss, list(weights.values())))
        scaled = directions(list(weights.values()), gradients)
        return {name: (w, v) for (name, w), v in zip(weights.items(), scaled, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass  # nothing is carried from batch to batch
