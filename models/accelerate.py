"""Fast forward passes of a network, in training and under attack, with unchanged results."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, fx, nn

from models.fold import Folded
from utils.distributed import ProcessGroup
from utils.errors import first_line

DYNAMIC = -1  # as ``compile_batch_size``


@dataclass(frozen=True)
class AccelerationConfig:
    """Which optimizations the forward passes use; none changes the mathematics.

    Attributes:
        channels_last: weights and images in NHWC memory order.
        fold: the attack runs on a copy of the student with BatchNorm folded into the convolutions.
        compile_batch_size: batches of exactly this size run through torch.compile, any other (an epoch's last) eagerly,
            so that nothing is ever recompiled; 0 compiles nothing, and DYNAMIC with a symbolic batch size.
        cuda_graphs: everything of a step up to the gradients, attack included, is replayed as one CUDA graph, for
            batches of the compiled size.
    """

    channels_last: bool = True
    fold: bool = True
    compile_batch_size: int = 0
    cuda_graphs: bool = False


NO_ACCELERATION = AccelerationConfig(channels_last=False, fold=False)


def choose_acceleration(
    device: torch.device,
    compile: str,
    batch_size: int,
    group: ProcessGroup = ProcessGroup(),  # noqa: B008 (no state)
) -> AccelerationConfig:
    """Choose the optimizations that pay on a device (measured: ``python -m benchmarks.train_step --ablate``).

    Args:
        compile: ``auto`` (on CUDA only: eager is faster on a CPU), ``on`` or ``off``.
        group: the processes that share each batch. Several exchange tensors within a step: it is no CUDA graph.
    """
    compiled = compile == "on" or (compile == "auto" and device.type == "cuda")
    rows = group.rows(batch_size)
    return AccelerationConfig(
        compile_batch_size=rows.stop - rows.start if compiled else 0,
        cuda_graphs=compiled and device.type == "cuda" and group.size == 1,
    )


class AcceleratedModel:
    """The forward passes of one network: in train mode, and (folded, frozen) under attack.

    Args:
        model: its parameters stay the ones that the optimizer trains; channels_last changes only their memory order.
        autocast: makes the context of mixed precision; logits are returned in float32 or better.

    Attributes:
        compile_settled: whether a compiled forward pass has been made, or compiling was given up.
    """

    def __init__(
        self,
        model: nn.Module,
        acceleration: AccelerationConfig,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        if not is_known(model):
            acceleration = replace(acceleration, channels_last=False, fold=False)
        if acceleration.channels_last:
            model.to(memory_format=torch.channels_last)
        self.model, self.acceleration, self.autocast = model, acceleration, autocast
        self.compile_settled = False
        self._folded = _fold(model) if acceleration.fold else None
        self._train_forward: Callable[[Tensor], Tensor] = model
        self._attack_forward: Callable[[Tensor], Tensor] = self._folded or model
        if acceleration.compile_batch_size:
            dynamic = None if acceleration.compile_batch_size == DYNAMIC else False  # None: from the second size on
            attacked = self._folded.module if self._folded else model
            try:
                self._train_forward = torch.compile(model, dynamic=dynamic)
                self._attack_forward = torch.compile(attacked, dynamic=dynamic)
            except RuntimeError as error:  # a Python or system that this PyTorch cannot compile on
                self.run_eagerly(error)

    def refresh(self) -> None:
        """Fold the present weights; call it whenever they have changed."""
        if self._folded is not None:
            self._folded.refresh()

    def in_memory_order(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W) in the memory order of the weights."""
        last = self.acceleration.channels_last
        return images.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def train_logits(self, images: Tensor) -> Tensor:
        """Logits (B, C) in the model's present mode, differentiable in the weights."""
        return self._run(self._train_forward, self.model, images)

    def attack_logits(self, images: Tensor, compiled: bool = True) -> Tensor:
        """Eval-mode logits (B, C), differentiable in the images; call it inside ``frozen(model)``.

        Args:
            compiled: False where several gradients of one forward are taken, which a compiled one does not allow.
        """
        eager = self._folded or self.model
        if not compiled:
            return self._run(eager, eager, images)
        try:
            return self._run(self._attack_forward, eager, images)
        except torch.cuda.OutOfMemoryError:
            raise  # eagerly it needs no less
        except Exception as error:  # whatever the compiler raises; eval mode changes nothing, so it can be repeated
            if self._attack_forward is eager:
                raise
            self.run_eagerly(error)
            return self._run(eager, eager, images)

    def eager_logits(self, images: Tensor) -> Tensor:
        """As ``train_logits``, never compiled: for hooks on the model's layers."""
        return self._run(self.model, self.model, images)

    def run_eagerly(self, error: Exception) -> None:
        """Drop what was compiled, because of an error in it."""
        self._train_forward, self._attack_forward = self.model, self._folded or self.model
        self.compile_settled = True
        warn_once(f"torch.compile failed ({first_line(error)}): falling back to eager mode")

    def _run(self, forward: Callable[[Tensor], Tensor], eager: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        if self.acceleration.compile_batch_size not in (len(images), DYNAMIC):
            forward = eager
        with self.autocast():
            logits = forward(self.in_memory_order(images))
        self.compile_settled |= forward is not eager
        # Mixed precision returns bfloat16; compute the losses in float32.
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@cache
def warn_once(message: str) -> None:
    """Warn once, also where several networks have the same cause; Python's own filter is reset by some libraries."""
    warnings.warn(message, stacklevel=3)


def is_known(model: nn.Module) -> bool:
    """Whether all its modules are PyTorch's or this project's, without hooks. Another network may look at the memory
    order (``view``), and tracing would lose its hooks and freeze what it does in train mode."""
    return all(
        type(module).__module__.split(".")[0] in ("torch", "models")
        and not (module._forward_hooks or module._forward_pre_hooks)
        for module in model.modules()
    )


def _fold(model: nn.Module) -> Folded | None:
    try:
        return Folded(model)
    except fx.proxy.TraceError:
        return None  # a forward that depends on values cannot be traced; it is attacked as it is
