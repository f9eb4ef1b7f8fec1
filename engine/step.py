"""One training step: attack the student, run the method's forward passes in order, minimise the sum of its terms."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from attacks.pgd import AttackSpec, frozen, perturb
from engine.speed import Network, Speedups
from losses.base import Objective

Result = tuple[Tensor | None, dict[str, Tensor]]


class TrainStep:
    """The step that training, benchmarks and the faithfulness tests share.

    Args:
        student: the network to make robust; guide: the natural classifier, or None where the method has no guide pass.
        objective: the method.
        optimizer: one optimizer over student and guide.
        attack: the inner maximisation.
        autocast: makes the context in which forward passes run (mixed precision); losses are computed in float32.
        speedups: optimizations that leave the mathematics as it is.
    """

    def __init__(
        self,
        student: nn.Module,
        guide: nn.Module | None,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        attack: AttackSpec,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        speedups: Speedups = Speedups(),  # noqa: B008 (frozen)
    ):
        self.objective, self.optimizer, self.attack, self.speedups = objective, optimizer, attack, speedups
        self.student = Network(student, speedups, autocast)
        self.guide = Network(guide, speedups, autocast) if guide is not None else None
        self._unproven = bool(speedups.compile_for)

    def __call__(self, x: Tensor, y: Tensor, start: Tensor | None) -> Result:
        """Train on one batch.

        Args:
            x: clean images (B, 3, H, W) in [0, 1]; y: labels (B,).
            start: where the attack starts, like x; ignored by a method without an attack.

        Returns:
            x' (None without an attack) and the detached terms, whose sum is the loss.
        """
        if self.speedups.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self._unproven and len(x) == self.speedups.compile_for:
            return self._first_compiled(x, y, start)
        return self._run(x, y, start)

    def _run(self, x: Tensor, y: Tensor, start: Tensor | None) -> Result:
        x_adv = self.adversarial(x, y, start) if "adv" in self.objective.passes else None
        return x_adv, self.update(x, x_adv, y)

    def _first_compiled(self, x: Tensor, y: Tensor, start: Tensor | None) -> Result:
        """The first compiled step; where compilation fails, the same step eagerly, and eager steps from then on."""
        self._unproven = False
        networks = [net for net in (self.student, self.guide) if net is not None]
        buffers = [(b, b.clone()) for net in networks for b in net.model.buffers()]
        try:
            return self._run(x, y, start)
        except Exception as error:  # whatever the compiler raises: the optimizer has not stepped yet
            warnings.warn(f"torch.compile failed ({str(error).splitlines()[0]}): going on without it", stacklevel=2)
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for net in networks:
                net.run_eagerly()
            return self._run(x, y, start)

    def adversarial(self, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """x' by the method's inner maximisation, student in eval mode."""
        self.student.refresh()
        size = self.speedups.micro_batch or len(x)
        with frozen(self.student.model):
            parts = [
                perturb(
                    self.student.attack_logits,
                    images,
                    labels,
                    self.objective.inner,
                    self.attack,
                    begin,
                    self.objective.inner_uses_clean,
                )
                for images, labels, begin in zip(x.split(size), y.split(size), start.split(size), strict=True)
            ]
        return torch.cat(parts)

    def update(self, x: Tensor, x_adv: Tensor | None, y: Tensor) -> dict[str, Tensor]:
        """One optimizer step on the method's outer loss; returns its detached terms."""
        sources = {"adv": (self.student, x_adv), "nat": (self.student, x), "guide": (self.guide, x)}
        logits = {}
        for name in self.objective.passes:
            network, images = sources[name.removesuffix(".no_grad")]
            network.model.train()
            if name.endswith(".no_grad"):
                with torch.no_grad():
                    network.train_logits(images)
            else:
                logits[name] = network.train_logits(images)
        terms = self.objective.outer(logits, y)
        self.optimizer.zero_grad(set_to_none=True)
        sum(terms.values()).backward()
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}
