"""BatchNorm with the statistics of the whole batch, whose rows several processes hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from utils.distributed import ProcessGroup
from utils.errors import UserError


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """In train mode normalises by the mean and variance of the rows of all processes; a process may hold none.

    Its parameters, statistics and eval mode are those of ``nn.BatchNorm2d``. Each train-mode pass exchanges 2 C + 1
    numbers of 8 bytes, and its backward 2 C. Unlike torch's SyncBatchNorm it also runs on CPUs.
    """

    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        return self._train_forward(x) if self.training else super().forward(x)

    @torch.compiler.disable  # a compiled network breaks its graph here; the attack, in eval mode, does not
    def _train_forward(self, x: Tensor) -> Tensor:
        mean, var, count = global_statistics(x.detach(), self.group)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                unbiased = var * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        mean, var = mean.to(self.weight.dtype), var.to(self.weight.dtype)
        return _Normalise.apply(x, self.weight, self.bias, mean, var, count, self.eps, self.group)


def synchronise_batch_norm(model: nn.Module, group: ProcessGroup) -> None:
    """Turn every BatchNorm2d of the model into a synchronised one, with the same parameters and statistics.

    Raises:
        UserError: a BatchNorm of another kind, whose statistics would differ between the processes.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or isinstance(module, SynchronisedBatchNorm2d):
            continue
        plain = type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats
        if not plain or module.momentum is None:
            raise UserError(
                f"{name} ({module}) cannot have the statistics of several processes: add --batch-norm local, or use "
                "BatchNorm2d with weights, statistics and a momentum"
            )
        module.__class__, module.group = SynchronisedBatchNorm2d, group


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """Within the context each process normalises by its own rows, as where all have the same ones."""
    layers = {module: module.group for module in model.modules() if isinstance(module, SynchronisedBatchNorm2d)}
    for layer in layers:
        layer.group = ProcessGroup()
    try:
        yield
    finally:
        for layer, group in layers.items():
            layer.group = group


def global_statistics(x: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance (C,) of the rows (B, C, H, W) of all processes, and how many values each is of, in
    float64, so that the variance may be had from sums."""
    channels = x.shape[1]
    sums = torch.zeros(2 * channels + 1, dtype=torch.float64, device=x.device)
    if x.numel():
        n = x.numel() // channels
        mean, var = (t.double() for t in torch.batch_norm_update_stats(x, None, None, 0.0))
        torch.cat([n * mean, n * (var + mean**2), sums.new_full((1,), n)], out=sums)
    group.all_reduce_(sums)
    count = sums[-1]
    mean = sums[:channels] / count
    return mean, (sums[channels:-1] / count - mean**2).clamp_min(0), count


class _Normalise(torch.autograd.Function):
    """weight (x - mean) / sqrt(var + eps) + bias, where mean and var depend on the x of all processes. The gradients of
    weight and bias are of this process's rows."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        group: ProcessGroup,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), count)
        ctx.eps, ctx.group = eps, group
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd, count = ctx.saved_tensors
        if x.numel():
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, None, None, mean, invstd, True, ctx.eps, [False, True, True]
            )
        else:
            grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, *[None] * 5
        sums = torch.stack([grad_weight, grad_bias]).double()
        ctx.group.all_reduce_(sums)
        # d/dx = weight invstd (grad - mean of grad - normalised x times the mean of grad times normalised x)
        scale = weight * invstd
        slope, shift = -scale * (sums / count).to(scale.dtype)
        slope = slope * invstd
        shift = shift - slope * mean
        scale, slope, shift = (t.view(1, -1, 1, 1) for t in (scale, slope, shift))  # in bfloat16 the sum would cancel
        return (grad * scale).addcmul_(x, slope).add_(shift).to(x.dtype), grad_weight, grad_bias, *[None] * 5
