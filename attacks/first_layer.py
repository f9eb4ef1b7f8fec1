"""Steps through the first layer alone: the inner loop of YOPO (Zhang et al., NeurIPS 2019)."""

from collections.abc import Callable

import torch
from torch import Tensor

from attacks.pgd import AttackSpec, clip


def first_layer_steps(
    layer: Callable[[Tensor], Tensor], x: Tensor, eta: Tensor, slope: Tensor, spec: AttackSpec
) -> Tensor:
    """Ascend <layer(clip(x + eta, 0, 1)), slope>, which the paper calls the Hamiltonian of the first layer.

    Args:
        layer: images (B, 3, H, W) to the input of the rest of the network.
        x: clean images in [0, 1]; eta: the perturbation, of their shape; x + eta may be outside of [0, 1].
        slope: gradient of the loss in the layer's output, constant.
        spec: epsilon, step_size and num_steps are used, in l-inf.

    Returns:
        eta, inside the epsilon-ball, x + eta inside [0, 1], detached.
    """
    for _ in range(spec.num_steps):
        eta = eta.detach().requires_grad_()
        with torch.enable_grad():
            value = (layer(clip(x + eta)) * slope).sum()
        (gradient,) = torch.autograd.grad(value, eta)
        with torch.no_grad():
            eta = (eta + spec.step_size * gradient.sign()).clamp(-spec.epsilon, spec.epsilon)
            eta = (x + eta).clamp(0, 1) - x
    return eta.detach()
