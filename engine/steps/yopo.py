"""The steps of YOPO: the attack steps through the first layer, between full passes of the network."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attacks.first_layer import first_layer_steps
from attacks.pgd import clip, frozen, uniform
from engine.steps.standard import StandardStep
from utils.errors import UserError


def first_layer(model: nn.Module) -> nn.Conv2d:
    """The convolution that sees the images.

    Raises:
        UserError: the network has none without a bias, which YOPO takes for its first layer.
    """
    layer = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    if layer is None or layer.bias is not None:
        raise UserError(
            "YOPO needs a network whose first layer is a convolution without bias: choose another --student"
        )
    return layer


def check_sees_images(model: nn.Module, layer: nn.Module, x: Tensor) -> None:
    """Raises: UserError: the layer's input is not x itself, so that its gradient cannot be had from x + eta."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad(), frozen(model):
        model(x)
    handle.remove()
    if not torch.equal(seen[0], x):
        raise UserError("the first layer of a network for YOPO sees the images as they are: leave out --normalize")


@contextmanager
def output_of(layer: nn.Module, detached: bool) -> Iterator[list[Tensor]]:
    """Append the layer's output to the list that this yields, and keep the output's gradient.

    Args:
        detached: whether the rest of the network sees a leaf in its place, so that nothing before it gets a gradient.
    """
    outputs: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_() if detached else output)
        outputs[-1].retain_grad()
        return outputs[-1]

    handle = layer.register_forward_hook(hook)
    try:
        yield outputs
    finally:
        handle.remove()


class YOPOStep(StandardStep):
    """m full passes whose gradients add up, with steps through the first layer after each; see ``losses.yopo``.

    The first layer gets the plain gradient of each pass and, at the next eta, that of the Hamiltonian: about twice what
    the other layers get, as in the published program.

    Attributes:
        etas: x' - x after each pass of the latest batch; losses: of each pass.
    """

    capturable = False  # hooks on the first layer
    ignores = ("after_step", "after_update", "bn_momentum")

    own_attack = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.layer = first_layer(self.student.model)
        self.etas: list[Tensor] = []
        self.losses: list[Tensor] = []
        self._checked = False

    def draw_eta(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """U(-epsilon, epsilon); x + eta may be outside of [0, 1]."""
        return self.attack.epsilon * uniform(x, generator)

    def __call__(
        self, views: Sequence[Tensor], y: Tensor, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        n, rows = len(y), self._rows(y)
        x = self.student.in_memory_order(views[0])
        eta, x = self.draw_eta(x, generator)[rows], x[rows]
        self.etas, self.losses = [], []
        first_batch = not self.optimizer.state
        if not self._checked:
            self._checked = True
            if not views[0].is_meta:  # there the work is counted, and no image is looked at
                check_sees_images(self.student.model, self.layer, self.student.in_memory_order(views[0][:1]))
        self.student.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        for j in range(int(self.objective.full_passes)):
            with output_of(self.layer, detached=False) as outputs:
                logits = self.group.all_gather(self.student.eager_logits(x + eta), n)
            loss = sum(self.objective.outer({"adv": logits}, y).values())
            loss.backward()
            slope = outputs[0].grad.detach()
            if self.objective.wide and first_batch and j == 0:
                self.layer.weight.grad = None
            eta = first_layer_steps(self.layer, x, eta, slope, self.attack)
            (self.layer(clip(x + eta)) * slope).sum().backward()
            self.etas.append(eta)
            self.losses.append(loss.detach())
        self.x_adv = [x + eta]
        self.run_passes(("adv.no_grad",), 0, x, y, {})  # for the program's log
        self.sum_gradients()
        self.optimizer.step()
        return {"ce": torch.stack(self.losses).mean()}


class TRADESYOPOStep(StandardStep):
    """The standard step with an attack of m full passes, each followed by steps through the first layer.

    Attributes:
        etas: x' - x after each pass of the latest attack.
    """

    capturable = False  # hooks on the first layer

    own_attack = True

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.layer = first_layer(self.student.model)
        self.etas: list[Tensor] = []

    def attack_view(self, x: Tensor, y: Tensor, start: Tensor, generator: torch.Generator | None) -> Tensor:
        eta, self.etas, y = start - x, [], y[self._rows(y)]
        with frozen(self.student.model):
            with torch.no_grad():
                nat_logits = self.student.eager_logits(x)
            for _ in range(int(self.objective.full_passes)):
                with output_of(self.layer, detached=True) as outputs:
                    logits = self.student.eager_logits(x + eta)
                value = self.objective.inner(logits, nat_logits, y).sum()
                (slope,) = torch.autograd.grad(value, outputs[0])
                eta = first_layer_steps(self.layer, x, eta, slope, self.attack)
                self.etas.append(eta)
        return (x + eta).clamp(0, 1)
