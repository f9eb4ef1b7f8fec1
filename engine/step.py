"""One training step: attack the student, run the method's forward passes in order, minimise the sum of its terms."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from attacks.pgd import AttackSpec, frozen, perturb
from losses.base import Objective


class TrainStep:
    """The step that training, benchmarks and the faithfulness tests share.

    Args:
        student: the network to make robust; guide: the natural classifier, or None where the method has no guide pass.
        objective: the method.
        optimizer: one optimizer over student and guide.
        attack: the inner maximisation.
        autocast: makes the context in which forward passes run (mixed precision); losses are computed in float32.
    """

    def __init__(
        self,
        student: nn.Module,
        guide: nn.Module | None,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        attack: AttackSpec,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.student, self.guide, self.objective = student, guide, objective
        self.optimizer, self.attack, self.autocast = optimizer, attack, autocast

    def __call__(self, x: Tensor, y: Tensor, start: Tensor | None) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Train on one batch.

        Args:
            x: clean images (B, 3, H, W) in [0, 1]; y: labels (B,).
            start: where the attack starts, like x; ignored by a method without an attack.

        Returns:
            x' (None without an attack) and the detached terms, whose sum is the loss.
        """
        x_adv = self.adversarial(x, y, start) if "adv" in self.objective.passes else None
        terms = self.update(x, x_adv, y)
        return x_adv, terms

    def adversarial(self, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """x' by the method's inner maximisation, student in eval mode."""
        with frozen(self.student):
            return perturb(
                lambda images: self._forward(self.student, images),
                x,
                y,
                self.objective.inner,
                self.attack,
                start,
                self.objective.inner_uses_clean,
            )

    def update(self, x: Tensor, x_adv: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """One optimizer step on the method's outer loss; returns its detached terms."""
        sources = {"adv": (self.student, x_adv), "nat": (self.student, x), "guide": (self.guide, x)}
        logits = {}
        for name in self.objective.passes:
            name, only_statistics = name.removesuffix(".no_grad"), name.endswith(".no_grad")
            model, images = sources[name]
            model.train()
            if only_statistics:
                with torch.no_grad():
                    self._forward(model, images)
            else:
                logits[name] = self._forward(model, images)
        terms = self.objective.outer(logits, y)
        self.optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def _forward(self, model: nn.Module, images: Tensor) -> Tensor:
        with self.autocast():
            logits = model(images)
        # Mixed precision hands back bfloat16; the losses deserve float32.
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
