"""BatchNorm folded into the convolution before it: the same eval-mode network with fewer passes over memory."""

import torch
from torch import Tensor, fx, nn


def scale_and_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """An eval-mode BatchNorm is scale * x + shift: (C,) each."""
    weight = 1.0 if bn.weight is None else bn.weight
    scale = weight / torch.sqrt(bn.running_var + bn.eps)
    return scale, -scale * bn.running_mean if bn.bias is None else torch.addcmul(bn.bias, scale, -bn.running_mean)


class Affine(nn.Module):
    """An eval-mode BatchNorm as one multiply-add, whose backward sums up no gradients of weights that are frozen."""

    def __init__(self, bn: nn.BatchNorm2d):
        super().__init__()
        self.bn = bn
        self.scale, self.shift = (torch.empty_like(bn.running_var).view(1, -1, 1, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.scale.dtype:  # mixed precision, of which addcmul would make float32
            return self.bn(x)
        return torch.addcmul(self.shift, x, self.scale)


class Unrounded(nn.Module):
    """A layer that computes in the type of its weights, where autocast has the others compute in bfloat16.

    It wraps the first convolution and the last linear layer, which are small: rounded to bfloat16, images 0.001 apart,
    as at the start of an attack, are mostly equal, and so are their logits.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:  # has no autocast
            return self.layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.layer(x.to(self.layer.weight.dtype))


class _Tracer(fx.Tracer):
    """Looks into no BatchNorm, its subclasses included."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, name)


class Folded:
    """An eval-mode forward of ``model`` in which every BatchNorm that directly follows a convolution is folded into it.

    With s = weight / sqrt(running_var + eps), bn(conv(x)) is a convolution with kernel s W and bias
    bias - s running_mean. A BatchNorm that follows something else becomes a multiply-add; the linear layer is shared
    with the model. It is differentiable only in the images: folded weights have no gradient. Mixed precision leaves out
    the first convolution and the last linear layer; see ``Unrounded``.

    Args:
        model: any network that ``torch.fx`` can trace, in any mode.

    Raises:
        torch.fx.proxy.TraceError: the forward depends on values and cannot be traced.
    """

    def __init__(self, model: nn.Module):
        modes = [(module, module.training) for module in model.modules()]
        try:
            traced = fx.GraphModule(model, _Tracer().trace(model.eval()))  # the mode becomes a constant in functions
        finally:
            for module, training in modes:
                module.training = training
        modules = dict(traced.named_modules())
        self._pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d, nn.Conv2d]] = []
        self._affine: list[tuple[nn.BatchNorm2d, Affine]] = []
        for node in list(traced.graph.nodes):
            if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
                continue
            source, bn = node.args[0], modules[node.target]
            if bn.running_var is None:
                continue  # it normalizes by the batch, in eval mode too
            follows = modules.get(source.target) if source.op == "call_module" and len(source.users) == 1 else None
            if not isinstance(follows, nn.Conv2d) or follows.padding_mode != "zeros":
                self._affine.append((bn, Affine(bn)))
                node.target = f"affine_{len(self._affine)}"
                traced.add_submodule(node.target, self._affine[-1][1])
                continue
            conv = follows
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
        modules = dict(traced.named_modules())
        layers = [node for node in traced.graph.nodes if node.op == "call_module"]
        convolutions, linear = (
            [node for node in layers if isinstance(modules[node.target], kind)] for kind in (nn.Conv2d, nn.Linear)
        )
        for node in (*convolutions[:1], *linear[-1:]):
            traced.add_submodule(f"unrounded_{node.name}", Unrounded(modules[node.target]))
            node.target = f"unrounded_{node.name}"
        traced.recompile()
        self.module = traced
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Fold the model's present weights and statistics; call it whenever they have changed."""
        for bn, affine in self._affine:
            scale, shift = scale_and_shift(bn)
            affine.scale.view(-1).copy_(scale)
            affine.shift.view(-1).copy_(shift)
        for conv, bn, folded in self._pairs:
            scale, shift = scale_and_shift(bn)
            torch.mul(conv.weight, scale.view(-1, 1, 1, 1), out=folded.weight)
            folded.bias.copy_(shift if conv.bias is None else torch.addcmul(shift, scale, conv.bias))

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to logits (B, C)."""
        return self.module(images)
