"""Wrappers around any step: its first compiled batch with a way back to eager, and its work as one CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from models.accelerate import warn_once
from utils.device import captured
from utils.errors import UserError, first_line

WARM_UP = 2  # full batches; the second compiles once more where BatchNorm's momentum is another in the first update
Outputs = dict[str, Tensor]


class EagerFallback:
    """A step whose forward passes are compiled. Where the first compiled batch fails, it is repeated eagerly, from the
    same statistics and random numbers, and all later batches run eagerly too. Everything else is the wrapped step's.

    Args:
        step: it must not change weights before everything of a batch that is compiled has run.
    """

    def __init__(self, step: Any):
        self.step, self._proven = step, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, views: Sequence[Tensor], y: Tensor, generator: torch.Generator | None = None) -> Outputs:
        if self._proven:
            return self.step(views, y, generator)
        networks = [net for net in (self.step.student, self.step.guide) if net is not None]
        buffers = [(b, b.clone()) for net in networks for b in net.model.buffers()]
        random = None if generator is None else generator.get_state()
        try:
            terms = self.step(views, y, generator)
            self._proven = any(net.compile_settled for net in networks)  # not in a smaller batch
            return terms
        except (torch.cuda.OutOfMemoryError, UserError):
            raise
        except Exception as error:  # whatever the compiler raises
            self._proven = True
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            if random is not None:
                generator.set_state(random)
            for net in networks:
                net.run_eagerly(error)
            return self.step(views, y, generator)


class GraphedStep:
    """A step whose work up to the gradients, attack included, is replayed as one CUDA graph.

    Other batch sizes, and a step that is not ``capturable``, run as they are. The graph is captured anew when the
    attack, or a number in an attribute of the objective, changes. Everything else is the wrapped step's. The networks
    must do nothing in Python that changes from one batch to the next.

    Args:
        batch_size: of the batches that are replayed.
    """

    def __init__(self, step: Any, batch_size: int):
        self.step, self.batch_size = step, batch_size
        self._full_batches = 0  # the first ones compile, tune and allocate
        self._works = True
        self._key: object = None
        self._graph: Graphed | None = None
        self._gradients: list[Tensor | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, views: Sequence[Tensor], y: Tensor, generator: torch.Generator | None = None) -> Outputs:
        if not self.step.capturable:
            self._release()
        if len(y) != self.batch_size or not self.step.capturable or self._full_batches < WARM_UP or not self._works:
            self._full_batches += len(y) == self.batch_size
            return self.step(views, y, generator)
        views = [self.step.student.in_memory_order(x) for x in views]
        starts = self.step.draw_starts(views, generator)
        if self._key != (key := (self.step.attack, len(views), self._numbers())):
            self._release()  # before the new one takes memory
            self._key = key
            self._capture(y, views, starts)
        if self._graph is None:
            terms = self.step.up_to_gradients(y, views, starts)
        else:
            terms = self._graph(y, *views, *starts)
            for parameter, gradient in zip(self._parameters(), self._gradients, strict=True):
                parameter.grad = gradient  # an eager step in between has replaced it
        self.step.optimizer.step()
        return terms

    def _capture(self, y: Tensor, views: Sequence[Tensor], starts: Sequence[Tensor]) -> None:
        def work(y: Tensor, *images: Tensor) -> Outputs:
            terms = self.step.up_to_gradients(y, images[: len(views)], images[len(views) :])
            self._gradients = [parameter.grad for parameter in self._parameters()]
            return terms

        self.step.optimizer.zero_grad(set_to_none=True)
        try:
            self._graph = Graphed(work, [y, *views, *starts])
        except RuntimeError as error:
            self._works, self._gradients = False, []
            warn_once(f"no CUDA graph ({first_line(error)}): falling back to separate kernels")

    def _release(self) -> None:
        """Give the graph's memory back."""
        if self._graph is not None:
            self.step.optimizer.zero_grad(set_to_none=True)
            self.step.x_adv.clear()
            self._key, self._graph, self._gradients = None, None, []

    def _numbers(self) -> dict[str, float]:
        """What a method may change from epoch to epoch, and a graph would hold on to."""
        return {name: value for name, value in vars(self.step.objective).items() if isinstance(value, (int, float))}

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.step.optimizer.param_groups for parameter in group["params"]]


class Graphed:
    """Capture ``function(*inputs)`` once and replay it.

    What the function reads and writes besides its inputs (weights, gradients, statistics) must stay where it is in
    memory. Run it once or twice before: everything that it compiles, tunes or allocates only once must be done.

    Args:
        function: tensors -> named tensors. It must not wait for the device, nor draw random numbers.
        inputs: of the shapes and memory formats of every later call.

    Raises:
        RuntimeError: the function does something that cannot be captured; nothing of it was executed.
    """

    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor]):
        self._inputs = [tensor.clone() for tensor in inputs]
        with captured(inputs[0].device) as self._graph:
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Outputs:
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor)
        self._graph.replay()
        return {name: tensor.clone() for name, tensor in self._outputs.items()}  # the next replay overwrites them
