"""BatchNorm folded into the convolution before it: the same eval-mode network with fewer passes over memory."""

import torch
from torch import Tensor, fx, nn


class Folded:
    """An eval-mode forward of ``model`` in which every BatchNorm that directly follows a convolution is folded into it.

    With s = weight / sqrt(running_var + eps), bn(conv(x)) is a convolution with kernel s W and bias
    bias - s running_mean. Everything that is not folded (a pre-activation BatchNorm, the linear layer) is shared with
    the model. It is differentiable in the images alone: the folded kernels need no gradient.

    Args:
        model: any network that ``torch.fx`` can trace. Put it in eval mode before calling this.

    Raises:
        torch.fx.proxy.TraceError: the forward depends on values and cannot be traced.
    """

    def __init__(self, model: nn.Module):
        traced = fx.symbolic_trace(model)
        modules = dict(traced.named_modules())
        self._pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]] = []
        for node in list(traced.graph.nodes):
            source = node.args[0] if node.args else None
            if not (
                node.op == "call_module"
                and isinstance(modules[node.target], nn.BatchNorm2d)
                and isinstance(source, fx.Node)
                and source.op == "call_module"
                and isinstance(modules[source.target], nn.Conv2d)
                and len(source.users) == 1
            ):
                continue
            conv, bn = modules[source.target], modules[node.target]
            folded = nn.Conv2d(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,
                conv.stride,
                conv.padding,
                conv.dilation,
                conv.groups,
                device=conv.weight.device,
                dtype=conv.weight.dtype,
            ).requires_grad_(False)
            folded.weight.data = torch.empty_like(conv.weight)  # in the same memory format
            self._pairs.append((conv, bn, folded))
            traced.add_submodule(f"folded_{len(self._pairs)}", folded)
            source.target = f"folded_{len(self._pairs)}"
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
        traced.recompile()
        self.module = traced
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the model's present weights and statistics; call it whenever they have changed."""
        for conv, bn, folded in self._pairs:
            scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
            torch.mul(conv.weight, scale.view(-1, 1, 1, 1), out=folded.weight)
            shift = -bn.running_mean if conv.bias is None else conv.bias - bn.running_mean
            torch.addcmul(bn.bias, scale, shift, out=folded.bias)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to logits (B, C)."""
        return self.module(images)
