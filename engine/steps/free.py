"""The step of Free AT: m updates on each batch, each from one backward pass for the perturbation and the weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attacks.pgd import clip
from engine.steps.standard import StandardStep, set_rates
from utils.errors import UserError


class FreeStep(StandardStep):
    """See ``engine.steps.Step`` for the contract, and ``losses.free`` for the method.

    Attributes:
        delta: (B, C, H, W), where the perturbation of each *position* in a batch stands; None before the first batch.
        losses: of each update of the latest batch.
    """

    capturable = False  # the optimizer steps within
    ignores = ("after_step", "after_update", "bn_momentum")

    own_attack = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.delta: Tensor | None = None
        self.losses: list[Tensor] = []
        self._rates: Sequence[dict[str, float]] = [{}] * self.updates_per_batch

    @property
    def updates_per_batch(self) -> int:
        return int(self.objective.replays)

    def set_rates(self, rates: Sequence[dict[str, float]]) -> None:
        self._rates = rates

    def __call__(
        self, views: Sequence[Tensor], y: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        n, rows = len(y), self._rows(y)
        delta, self.losses = self._known(views[0])[rows], []
        x = self.student.in_memory_order(views[0])[rows]
        self.student.model.train()
        for rates in self._rates:
            set_rates(self.optimizer, rates)
            self.optimizer.zero_grad(set_to_none=True)
            delta.requires_grad_()
            x_adv = clip(x + delta) if self.objective.clip_image else x + delta
            terms = self.objective.outer({"adv": self.group.all_gather(self.student.train_logits(x_adv), n)}, y)
            loss = sum(terms.values())
            loss.backward()
            with torch.no_grad():
                delta = self._moved(delta.detach(), delta.grad, x)
            self.sum_gradients()
            self.optimizer.step()  # from the gradient at the old delta
            self.losses.append(loss.detach())
        self.delta = torch.cat([self.group.all_gather(delta, n), self.delta[n:]])
        return {"ce": torch.stack(self.losses).mean()}

    def _known(self, x: Tensor) -> Tensor:
        """The perturbations of the batch's positions: zero where no batch has reached yet."""
        known = x[:0] if self.delta is None else self.delta
        if known.shape[1:] != x.shape[1:]:
            found = f"its perturbation is {tuple(known.shape)} and the images are {tuple(x.shape)}"
            raise UserError(f"last.pt is damaged ({found}): train anew with --resume none")
        self.delta = torch.cat([known, torch.zeros_like(x[len(known) :])])
        return self.delta[: len(x)]

    def _moved(self, delta: Tensor, gradient: Tensor, x: Tensor) -> Tensor:
        epsilon, step_size = self.attack.epsilon, self.attack.step_size
        delta = (delta + step_size * gradient.sign()).clamp(-epsilon, epsilon)
        return delta if self.objective.clip_image else torch.max(torch.min(delta, 1 - x), -x)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.delta is None else {"delta": self.delta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.delta = state.get("delta")
        if self.delta is not None and (self.delta.dim() != 4 or not self.delta.is_floating_point()):
            raise ValueError(f"the perturbation is {self.delta.dtype} {tuple(self.delta.shape)}")
