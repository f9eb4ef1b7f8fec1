"""One training step: attack the student, run the method's forward passes in order, minimise the sum of its terms."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attacks.awp import directions, perturbed, perturbed_weights, statistics_kept
from attacks.pgd import AttackSpec, frozen, perturb
from engine.steps.cuda_graph import Graphed
from losses.base import Objective
from models.accelerate import AcceleratedModel, AccelerationConfig, warn_once

Result = tuple[Tensor | None, dict[str, Tensor]]


@dataclass(frozen=True)
class View:
    """One view of a batch of images.

    Attributes:
        x: images (B, 3, H, W) in [0, 1].
        start: where the attack starts, like x; ignored by a method without an attack.
        weight: of its loss.
        x_adv: x' like x, once it is known.
    """

    x: Tensor
    start: Tensor | None
    weight: float = 1.0
    x_adv: Tensor | None = None


class TrainStep:
    """The step that training, benchmarks and the faithfulness tests share.

    Args:
        student: the network to make robust; guide: the natural classifier, or None where the method has no guide pass.
        objective: the method.
        optimizer: one optimizer over student and guide.
        attack: the inner maximisation.
        autocast: makes the context in which forward passes run (mixed precision); losses are computed in float32.
        acceleration: optimizations that leave the mathematics as it is.
        awp_gamma: size of the adversarial weight perturbation of the student; 0 is none. The guide is not perturbed.

    ``attack`` and ``awp_gamma`` may be set anew between steps. A run with weight perturbation starts with ``awp_gamma``
    above 0: its forward passes are ``objective.awp_passes`` even in the epochs before the perturbation sets in.
    ``networks`` are those that run eagerly once compilation has failed; others, such as an average, may be added.
    """

    def __init__(
        self,
        student: nn.Module,
        guide: nn.Module | None,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        attack: AttackSpec,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        acceleration: AccelerationConfig = AccelerationConfig(),  # noqa: B008 (frozen)
        awp_gamma: float = 0.0,
    ):
        self.objective, self.optimizer, self.attack, self.acceleration = objective, optimizer, attack, acceleration
        self.student = AcceleratedModel(student, acceleration, autocast)
        self.guide = AcceleratedModel(guide, acceleration, autocast) if guide is not None else None
        self.networks = [net for net in (self.student, self.guide) if net is not None]
        self.awp_gamma = awp_gamma
        self.passes = (awp_gamma > 0 and objective.awp_passes) or objective.passes
        torch.backends.cudnn.benchmark = True  # the shapes stay the same: let cuDNN time its algorithms once
        self._unproven = bool(acceleration.compile_batch_size)
        self._graph: Graphed | None = None
        self._graph_is_of: object = None
        self._gradients: list[Tensor | None] = []

    def __call__(self, x: Tensor, y: Tensor, start: Tensor | None, second: View | None = None) -> Result:
        """Train on one batch.

        Args:
            x: clean images (B, 3, H, W) in [0, 1]; y: labels (B,).
            start: where the attack starts, like x; ignored by a method without an attack.
            second: another view of the same images; its loss, times its weight, is added.

        Returns:
            x' (None without an attack) and the detached terms, whose sum is the loss.
        """
        views = [View(x, start)] + ([second] if second is not None else [])
        if self.acceleration.channels_last:
            views = [replace(view, x=view.x.contiguous(memory_format=torch.channels_last)) for view in views]
        if len(x) == self.acceleration.compile_batch_size:
            if self._unproven:
                return self._first_compiled(views, y)
            if self.acceleration.cuda_graphs and not self.awp_gamma:
                return self._replay(views, y)
        return self._run(views, y)

    def _run(self, views: list[View], y: Tensor) -> Result:
        views = self._attacked(views, y)
        return views[0].x_adv, self.update(views, y)

    def _attacked(self, views: list[View], y: Tensor) -> list[View]:
        if "adv" not in self.objective.passes:
            return views
        return [replace(view, x_adv=self.adversarial(view.x, y, view.start)) for view in views]

    def _replay(self, views: list[View], y: Tensor) -> Result:
        """``_run`` with everything up to the gradients in one CUDA graph, captured anew when the attack changes."""
        images = [tensor for view in views for tensor in (view.x, view.start) if tensor is not None]
        if self._graph_is_of != (self.attack, len(images)):
            self._graph_is_of, self._graph = (self.attack, len(images)), None  # before the new one takes memory
            try:
                self._capture(views, y, images)
            except RuntimeError as error:
                warn_once(f"no CUDA graph ({next(iter(str(error).splitlines()), '')}): going on without it")
                self.acceleration = replace(self.acceleration, cuda_graphs=False)
        if self._graph is None:
            return self._run(views, y)
        outputs = self._graph(y, *images)
        for parameter, gradient in zip(self._parameters(), self._gradients, strict=True):
            parameter.grad = gradient  # an eager step in between has put its own there
        self.optimizer.step()
        return outputs.pop("x_adv", None), outputs

    def _capture(self, views: list[View], y: Tensor, images: list[Tensor]) -> None:
        def work(y: Tensor, *images: Tensor) -> dict[str, Tensor]:
            copies = iter(images)
            own = [replace(view, x=next(copies), start=None if view.start is None else next(copies)) for view in views]
            own = self._attacked(own, y)
            terms = self.gradients(own, y, [{} for _ in own])
            self._gradients = [parameter.grad for parameter in self._parameters()]
            return terms if own[0].x_adv is None else {**terms, "x_adv": own[0].x_adv}

        self.optimizer.zero_grad(set_to_none=True)
        self._graph = Graphed(work, [y, *images])

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _first_compiled(self, views: list[View], y: Tensor) -> Result:
        """The first compiled step; where compilation fails, the same step eagerly, and eager steps from then on."""
        self._unproven = False
        buffers = [(b, b.clone()) for net in self.networks for b in net.model.buffers()]
        try:
            return self._run(views, y)
        except Exception as error:  # whatever the compiler raises: the optimizer has not stepped yet
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            for net in self.networks:
                net.run_eagerly(error)
            return self._run(views, y)

    def adversarial(self, x: Tensor, y: Tensor, start: Tensor) -> Tensor:
        """x' by the method's inner maximisation, student in eval mode."""
        self.student.refresh()
        with frozen(self.student.model):
            return perturb(
                self.student.attack_logits,
                x,
                y,
                self.objective.inner,
                self.attack,
                start,
                self.objective.inner_uses_clean,
            )

    def update(self, views: list[View], y: Tensor) -> dict[str, Tensor]:
        """One optimizer step on the method's outer loss, summed over the views; returns its detached terms."""
        logits: list[dict[str, Tensor]] = [{} for _ in views]
        with self._perturbation(views, y, logits) if self.awp_gamma else nullcontext():
            terms = self.gradients(views, y, logits)
            self.optimizer.step()
        return terms

    def gradients(self, views: list[View], y: Tensor, logits: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The gradients of the outer loss, and what the objective learns from the logits; returns the detached terms.

        Args:
            logits: for each view, those of passes that need not be run; the others are added.
        """
        terms = {}
        self.optimizer.zero_grad(set_to_none=True)
        for i, view in enumerate(views):
            weighted = self.outer(self.passes, view, y, logits[i])
            sum(weighted.values()).backward()
            terms |= {name if i == 0 else f"{name}_view{i + 1}": term.detach() for name, term in weighted.items()}
        with torch.no_grad():
            self.objective.after_step({name: value.detach() for name, value in logits[0].items()}, y)
        return terms

    def outer(self, passes: Iterable[str], view: View, y: Tensor, logits: dict[str, Tensor]) -> dict[str, Tensor]:
        """The method's terms of one view, weighted.

        Args:
            passes: forward passes to run, in this order.
            logits: by pass; those that are there already are not run, the others are added.
        """
        sources = {"adv": (self.student, view.x_adv), "nat": (self.student, view.x), "guide": (self.guide, view.x)}
        for name in passes:
            network, images = sources[name.removesuffix(".no_grad")]
            network.model.train()
            if name.endswith(".no_grad"):
                with torch.no_grad():
                    network.train_logits(images)
            elif name not in logits:
                logits[name] = network.train_logits(images)
        return {name: view.weight * term for name, term in self.objective.outer(logits, y).items()}

    def _perturbation(self, views: list[View], y: Tensor, logits: list[dict[str, Tensor]]) -> AbstractContextManager:
        """The context in which the student's weights are perturbed. The guide's passes, which the perturbation does not
        change, are run here and left in ``logits``."""
        if self.guide is not None:
            self.guide.model.train()
            for view, known in zip(views, logits, strict=True):
                known["guide"] = self.guide.train_logits(view.x)
        direction = self.awp_direction(views, y, [{n: v.detach() for n, v in known.items()} for known in logits])
        return perturbed([w for w, _ in direction.values()], [v for _, v in direction.values()], self.awp_gamma)

    def awp_direction(
        self, views: list[View], y: Tensor, logits: list[dict[str, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Where the loss of the views grows fastest: each perturbed weight of the student, and a direction of its norm.

        Args:
            logits: for each view, those of passes that need not be run, without gradient.
        """
        weights = perturbed_weights(self.student.model)
        # Logits in train mode do not depend on the statistics: passes that only move them are left out.
        passes = [name for name in self.passes if not name.endswith(".no_grad")]
        gradients = [torch.zeros_like(w) for w in weights.values()]
        with statistics_kept(self.student.model):
            for view, known in zip(views, logits, strict=True):
                loss = sum(self.outer(passes, view, y, known).values())
                torch._foreach_add_(gradients, torch.autograd.grad(loss, list(weights.values())))
        scaled = directions(list(weights.values()), gradients)
        return {name: (w, v) for (name, w), v in zip(weights.items(), scaled, strict=True)}
