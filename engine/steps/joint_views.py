"""The step of DAJAT: one loss of several views, with a second set of BatchNorm layers for the augmented ones."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from attacks.awp import named_directions, perturbed_weights, statistics_kept, weight_gradients
from engine.steps.standard import Logits, StandardStep
from models.batchnorm_sets import second_batchnorms
from utils.errors import UserError


class JointViewsStep(StandardStep):
    """Each view is attacked alone; ``objective.outer`` gets the logits of all: ``"nat"``, ``"adv"``, ``"nat2"``, ...

    The first view has the network's BatchNorm layers, the others the second set. The weight perturbation ascends
    ``objective.perturbed_loss`` of the first view.
    """

    capturable = False  # the BatchNorm layers change within
    ignores = ("after_step", "after_update")

    def __init__(self, *args: Any):
        super().__init__(*args)
        if any(self.view_weights[1:]) or self.accumulate > 1:
            raise UserError(
                "--augment-view-weight and --accumulate are not for a method with views of its own: leave them out"
            )

    def batchnorms(self, i: int) -> AbstractContextManager:
        return second_batchnorms(self.student.model) if i else nullcontext()

    def adversarial(
        self, views: Sequence[Tensor], y: Tensor, starts: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> list[Tensor]:
        x_adv = []
        for i, (x, start) in enumerate(zip(views, starts, strict=True)):
            with self.batchnorms(i):
                self.student.refresh()  # with the BatchNorm layers of this view
                x_adv.append(self.attack_view(x, y, start, generator))
        return x_adv

    def gradients(self, views: Sequence[Tensor], y: Tensor, logits: list[Logits]) -> dict[str, Tensor]:
        self.optimizer.zero_grad(set_to_none=True)
        joint = {}
        for i, x in enumerate(views):
            with self.batchnorms(i):
                self.run_passes(self.passes, i, x, y, logits[i])
            joint |= {name if i == 0 else f"{name}{i + 1}": value for name, value in logits[i].items()}
        terms = self.objective.outer(joint, y)
        sum(terms.values()).backward()
        self.sum_gradients()
        return {name: term.detach() for name, term in terms.items()}

    def awp_direction(
        self, views: Sequence[Tensor], y: Tensor, logits: list[Logits]
    ) -> dict[str, tuple[nn.Parameter, Tensor]]:
        weights, found = perturbed_weights(self.student.model), {}
        with statistics_kept(self.student.model):
            self.run_passes(self.passes, 0, views[0], y, found)
            loss = self.objective.perturbed_loss(found, y)
            gradients = weight_gradients(loss, weights.values())
        self.group.all_reduce_(*gradients)
        return named_directions(weights, gradients)
