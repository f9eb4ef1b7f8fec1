"""The standard step: attack the student, run the method's forward passes in order, minimise the sum of its terms."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from attacks.awp import named_directions, perturbed, perturbed_weights, statistics_kept, weight_gradients
from attacks.pgd import AttackSpec, check_attacked, frozen, perturb, starting_point, uniform
from losses.base import FROZEN_PASSES, Objective
from models.accelerate import AcceleratedModel
from utils.distributed import ProcessGroup
from utils.errors import UserError

Logits = dict[str, Tensor]  # by forward pass


def set_rates(optimizer: torch.optim.Optimizer, rates: dict[str, float]) -> None:
    """Set the learning rate and the momentum of the next update, ``{"lr": ..., "momentum": ...}``."""
    for group in optimizer.param_groups:
        group.update(rates)


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
        group: the processes that share each batch. Each attacks and passes through the networks only its rows. The
            logits of all rows are gathered: a loss, of whatever form, is of the whole batch. Gradients are added.
        accumulate: into how many parts a batch is divided that run one after the other, to need less memory. Each has
            its own BatchNorm statistics, and a term that is no mean over images is normalised within the part.

    Attributes:
        x_adv: x' of each part of each view of the latest batch that ran eagerly (a replayed CUDA graph does not set
            it), this process's rows; empty without an attack.

    Raises: UserError: several attacks on a batch whose noise would depend on the number of processes.
    """

    updates_per_batch = 1
    ignores: ClassVar[tuple[str, ...]] = ()  # members of an objective that the step does not use
    own_attack: ClassVar[bool] = False  # of l-inf, on plain images

    def __init__(
        self,
        student: AcceleratedModel,
        guide: AcceleratedModel | None,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        attack: AttackSpec,
        awp_gamma: float = 0.0,
        view_weights: Sequence[float] = (1.0,),
        group: ProcessGroup = ProcessGroup(),  # noqa: B008 (one process, without state)
        accumulate: int = 1,
    ):
        self.student, self.guide, self.objective, self.optimizer = student, guide, objective, optimizer
        self.group, self.accumulate = group, accumulate
        self.attack, self.awp_gamma, self.view_weights = attack, awp_gamma, view_weights
        self.passes = (awp_gamma > 0 and objective.awp_passes) or objective.passes
        self.x_adv: list[Tensor] = []
        if group.size > 1 and objective.step_noise and (accumulate > 1 or any(view_weights[1:])):
            raise UserError("--accumulate and --augment-view-weight are not for this method in several processes")

    @property
    def capturable(self) -> bool:
        # The optimizer steps at the perturbed weights; an attack may wait for the device or draw random numbers.
        chosen = self.objective
        waits = self.awp_gamma or chosen.moves or chosen.first_inner or chosen.step_noise or chosen.after_update
        return not waits and self.accumulate == 1

    def set_epoch(self, attack: AttackSpec, awp_gamma: float) -> None:
        self.attack, self.awp_gamma = attack, awp_gamma

    def set_rates(self, rates: Sequence[dict[str, float]]) -> None:
        set_rates(self.optimizer, rates[0])

    def __call__(
        self, views: Sequence[Tensor], y: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        views = [self.student.in_memory_order(x) for x in views]
        self._set_bn_momentum()
        starts = self.draw_starts(views, generator)  # of the whole batch: the numbers are those of one process
        views, starts = (
            [part[self._rows(part)] for x in images for part in self._parts(x)] for images in (views, starts)
        )
        first, self.x_adv = not self.x_adv, self.adversarial(views, y, starts, generator)
        if first:
            check_attacked(views, self.x_adv, self.attack)
        terms = self.update(views, y)
        self._set_bn_momentum()  # the next batch may be a CUDA graph, which does not come through here
        for i, (x, labels) in enumerate(zip(views, self._labels(views, y), strict=True)):
            self.run_passes(self.objective.after_update, i, x, labels, {})
        return terms

    def _set_bn_momentum(self) -> None:
        """Set the momentum that the objective names: in the first update the statistics are those of the batch."""
        if not self.objective.bn_momentum:
            return
        for module in self.student.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.objective.bn_momentum if self.optimizer.state else 1.0

    def update(self, views: Sequence[Tensor], y: Tensor) -> dict[str, Tensor]:
        """Take one optimizer step on the method's outer loss at ``x_adv``. Returns the detached terms.

        Args:
            views: the images of each part of each view, this process's rows; y: labels (B,) of the whole batch. So in
                the methods below.
        """
        logits: list[Logits] = [{} for _ in views]
        with self._perturbation(views, y, logits) if self.awp_gamma else nullcontext():
            terms = self.gradients(views, y, logits)
            self.optimizer.step()
        return terms

    def _parts(self, batch: Tensor) -> tuple[Tensor, ...]:
        return batch.tensor_split(min(self.accumulate, len(batch))) if self.accumulate > 1 else (batch,)

    def _rows(self, part: Tensor) -> slice:
        return self.group.rows(len(part))

    def _labels(self, views: Sequence[Tensor], y: Tensor) -> list[Tensor]:
        """The labels of all rows of each part of each view."""
        parts = self._parts(y)
        return list(parts) * (len(views) // len(parts))

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
        if not starts:
            return []
        labels = self._labels(views, y)
        if self.objective.attack_mode == "eval":
            self.student.refresh()
        return [self.attack_view(*each, generator) for each in zip(views, labels, starts, strict=True)]

    def attack_view(self, x: Tensor, y: Tensor, start: Tensor, generator: torch.Generator | None) -> Tensor:
        """x' of one view, from a start; the student is in the mode that the objective names.

        Args:
            x, start: this process's rows; y: the labels of all rows.
        """
        chosen, spec, first = self.objective, self.attack, None
        rows, n = self._rows(y), len(y)
        if chosen.step_noise:
            spec = replace(spec, noise=chosen.step_noise)
        if chosen.first_inner:
            spec = replace(spec, num_steps=spec.num_steps + 1)

            def first(adv_logits: Tensor, nat_logits: Tensor, y: Tensor) -> Tensor:
                u = uniform(nat_logits.new_empty(n, nat_logits.shape[1]), generator)[rows]
                return chosen.first_inner(adv_logits, nat_logits, y, u)

        evaluated = chosen.attack_mode == "eval"
        with frozen(self.student.model, chosen.attack_mode):
            return perturb(
                self.student.attack_logits if evaluated else self.student.train_logits,
                x,
                y[rows],
                chosen.inner,
                spec,
                generator=generator,
                start=start,
                uses_clean=chosen.inner_uses_clean,
                moves=chosen.moves,
                drop_stopped=evaluated,
                first=first,
                noise_rows=(n, rows),
                nat_logits=self.frozen_guide(x) if chosen.inner_uses_guide else None,
            )

    def gradients(self, views: Sequence[Tensor], y: Tensor, logits: list[Logits]) -> dict[str, Tensor]:
        """Compute the gradients of the outer loss, summed over the views, and call the objective's ``after_step``.

        Args:
            logits: for each view, those of passes that need not be run; the others are added.

        Returns:
            The detached terms.
        """
        terms: dict[str, Tensor] = {}
        labels, num_parts = self._labels(views, y), len(self._parts(y))
        self.optimizer.zero_grad(set_to_none=True)
        for i in range(len(views)):
            weighted = self.outer(self.passes, i, views[i], y, logits[i])
            sum(weighted.values()).backward()
            view = i // num_parts + 1
            for name, term in weighted.items():
                key = name if view == 1 else f"{name}_view{view}"
                terms[key] = terms[key] + term.detach() if key in terms else term.detach()
        self.sum_gradients()
        with torch.no_grad():
            for i in range(num_parts):
                self.objective.after_step({name: value.detach() for name, value in logits[i].items()}, labels[i])
        return terms

    def sum_gradients(self) -> None:
        """Add up the gradients of all processes, each of which has those of its rows."""
        parameters = [p for of_group in self.optimizer.param_groups for p in of_group["params"]]
        self.group.all_reduce_(*[p.grad for p in parameters if p.grad is not None])

    def outer(self, passes: Iterable[str], i: int, x: Tensor, y: Tensor, logits: Logits) -> dict[str, Tensor]:
        """The method's terms of the i-th part, counted over the views, weighted.

        Args:
            passes: forward passes to run, in this order.
            logits: by pass; those that are there already are not run, the others are added.
        """
        parts = self._parts(y)
        weight, labels = self.view_weights[i // len(parts)], parts[i % len(parts)]
        weight = weight * (len(labels) / len(y)) if len(parts) > 1 else weight
        self.run_passes(passes, i, x, labels, logits)
        return {name: weight * term for name, term in self.objective.outer(logits, labels).items()}

    def run_passes(self, passes: Iterable[str], i: int, x: Tensor, y: Tensor, logits: Logits) -> None:
        """Make forward passes on the i-th part; see ``Objective.passes``, and ``outer`` for the logits.

        Args:
            x: this process's rows; y: the labels of all rows of this part.
        """
        for name in passes:
            kind, _, only_statistics = name.partition(".")
            if name in logits:
                continue
            images = self.x_adv[i] if kind in ("adv", "far", "helper") else x
            if kind == "far":
                images = x + self.objective.h * (images - x)
            if kind in FROZEN_PASSES:
                out = self.frozen_guide(images)
            else:
                network = self.guide if kind == "guide" else self.student
                network.model.train()
                with torch.set_grad_enabled(torch.is_grad_enabled() and not only_statistics):
                    out = network.train_logits(images)
            if not only_statistics:
                logits[name] = self.group.all_gather(out, len(y))

    def frozen_guide(self, images: Tensor) -> Tensor:
        """The guide's logits (B, C) on images (B, 3, H, W), in eval mode and without gradient."""
        with torch.no_grad(), frozen(self.guide.model):
            self.guide.refresh()
            return self.guide.attack_logits(images)

    def _perturbation(self, views: Sequence[Tensor], y: Tensor, logits: list[Logits]) -> AbstractContextManager:
        """The context in which the student's weights are perturbed. The guide's passes, which the perturbation does not
        change, are run here and added to ``logits``."""
        of_guide = [name for name in self.passes if name in ("guide", *FROZEN_PASSES)]
        for i, (x, labels, known) in enumerate(zip(views, self._labels(views, y), logits, strict=True)):
            self.run_passes(of_guide, i, x, labels, known)
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
                torch._foreach_add_(gradients, weight_gradients(loss, weights.values()))
        self.group.all_reduce_(*gradients)
        return named_directions(weights, gradients)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass  # nothing is carried from batch to batch
