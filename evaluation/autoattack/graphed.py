"""A network's answers to an attack as CUDA graphs: the device does not wait for Python between two kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from models.accelerate import warn_once
from utils.device import aside, captured
from utils.errors import first_line

SIZES_PER_OCTAVE = 4
SMALLEST = 8


def round_up(n: int) -> int:
    """The size of the graph that answers n images: 8, 10, 12, 14, 16, 20, 24, ...; from 8 on less than n / 4 more."""
    step = max(2 ** ((n - 1).bit_length() - 1), SMALLEST) // SIZES_PER_OCTAVE if n > 1 else 1
    return max(SMALLEST, -(-n // step) * step)


class GraphedQueries:
    """Images (N, C, H, W) -> logits (N, K), differentiable once in the images, as ``network`` gives them.

    An image is dropped from an attack once it is misclassified, so that N changes all the time. It is rounded up to one
    of a few sizes, which are captured when first needed; the rows beyond N repeat the last image, and their answers
    are dropped.

    Args:
        network: what is captured. Its weights must stay where they are in memory, and its work must depend on nothing
            but the images. Where it cannot be captured, it runs as it is.
    """

    def __init__(self, network: Callable[[Tensor], Tensor]):
        self.network, self._graphs = network, {}
        self._pool: Any = None
        self._latest: object = None  # the query whose gradient can be taken: the graphs share their memory
        self._works = True

    def __call__(self, images: Tensor) -> Tensor:
        if not self._works or len(images) == 0:
            return self.network(images)
        shape = (round_up(len(images)), *images.shape[1:])
        if shape not in self._graphs:
            try:
                self._pool = self._pool or torch.cuda.graph_pool_handle()
                self._graphs[shape] = _Graph(self.network, images.new_zeros(shape), self._pool)
            except RuntimeError as error:  # out of memory too: separate kernels need less
                self._works, self._pool = False, None
                self._graphs.clear()
                warn_once(f"no CUDA graph ({first_line(error)}): falling back to separate kernels")
                return self.network(images)
        return _Query.apply(images, self._graphs[shape], self)


class _Query(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, graph: "_Graph", queries: GraphedQueries) -> Tensor:
        ctx.graph, ctx.queries, ctx.token = graph, queries, object()
        queries._latest = ctx.token
        ctx.save_for_backward(images)
        return graph.answer(images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.queries._latest is not ctx.token:
            ctx.graph.answer(*ctx.saved_tensors)
        ctx.queries._latest = None  # the graph of the gradient overwrites what it has read
        return ctx.graph.gradient(gradient), None, None


class _Graph:
    """Forward and backward pass of a network on as many images as the example has, each captured once."""

    def __init__(self, network: Callable[[Tensor], Tensor], example: Tensor, pool: Any):
        self._images = example

        def forward() -> None:
            with torch.enable_grad():
                self._leaf = self._images.detach().requires_grad_()
                self._logits = network(self._leaf)

        def backward() -> None:
            (self._image_gradient,) = torch.autograd.grad(self._logits, self._leaf, self._logit_gradient)

        def first() -> None:  # what is chosen or allocated only once
            forward()
            self._logit_gradient = torch.zeros_like(self._logits)
            backward()

        with aside(example.device):
            first()
            first()
        self._forward, self._backward = (_capture(work, pool, example.device) for work in (forward, backward))

    def answer(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W), N at most the example's."""
        n = len(images)
        self._images[:n].copy_(images)
        self._images[n:].copy_(images[-1:])
        self._forward()
        return self._logits[:n].detach().clone()  # the next replay overwrites them

    def gradient(self, gradient: Tensor) -> Tensor:
        """The gradient in the images (N, C, H, W) of the latest ``answer``, given that in its logits (N, K)."""
        n = len(gradient)
        self._logit_gradient[:n].copy_(gradient)
        self._logit_gradient[n:].zero_()
        self._backward()
        return self._image_gradient[:n].clone()


def _capture(work: Callable[[], None], pool: Any, device: torch.device) -> Callable[[], None]:
    """Capture what ``work`` does on the device, and return what does it again."""
    with captured(device, pool) as graph:
        work()

    def replay() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return replay
