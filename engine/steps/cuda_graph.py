"""A function of tensors as a CUDA graph: its kernels no longer wait for Python."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Outputs = dict[str, Tensor]


class Graphed:
    """``function(*inputs)``, captured once and replayed.

    What the function reads and writes besides its inputs (weights, gradients, statistics) must stay where it is in
    memory. Run it once or twice before capturing it: what it compiles, tunes or allocates once must be done.

    Args:
        function: tensors -> named tensors. It must not wait for the device, nor draw random numbers.
        inputs: of the shapes and memory formats of every later call.

    Raises:
        RuntimeError: the function does something that cannot be captured; nothing of it was executed.
    """

    def __init__(self, function: Callable[..., Outputs], inputs: Sequence[Tensor]):
        self._inputs = [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Outputs:
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor)
        self._graph.replay()
        return {name: tensor.clone() for name, tensor in self._outputs.items()}  # the next replay overwrites them
