"""The network that AutoAttack queries: frozen, folded, compiled or a CUDA graph; broken images are skipped."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from evaluation.autoattack.early_exit import AllImagesBroken, EarlyExit, margin
from evaluation.autoattack.graphed import GraphedQueries
from models.accelerate import DYNAMIC, AcceleratedModel, AccelerationConfig, is_known
from utils.device import ieee_products, set_precision


class AttackedModel(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K), float32, differentiable only in the images.

    Outside ``during_attack`` it is the network as loaded, in IEEE float32: it makes the clean predictions and the final
    check of what an attack found. Inside it answers an attack, with everything that makes it fast.

    Args:
        model: is put into eval mode on the device, frozen, and its weights into channels_last memory order.
        precision: ``fp32``, ``tf32`` or ``bf16``, of the attack's queries.
        compile: ``on`` runs the queries through torch.compile; ``off`` does not; ``auto`` makes them CUDA graphs on
            CUDA if all modules of the network are this project's or PyTorch's, and compiles any other network there.
        fold: the attacked network has its BatchNorm folded into the convolutions.
        early_exit: broken images are no longer queried.

    Attributes:
        num_forwarded: number of images in all forward passes for attacks, so far.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        compile: str = "auto",
        fold: bool = True,
        early_exit: bool = True,
    ):
        super().__init__()
        device = torch.device(device)
        self.model = model.to(device).eval().requires_grad_(False)
        torch.backends.cudnn.benchmark = False  # the number of images changes, and it would time anew
        graphed = compile == "auto" and device.type == "cuda" and is_known(model)
        compiled = compile == "on" or (compile == "auto" and device.type == "cuda" and not graphed)
        acceleration = AccelerationConfig(fold=fold, compile_batch_size=DYNAMIC if compiled else 0)
        self._network = AcceleratedModel(self.model, acceleration, set_precision(precision, device))
        self._queries = GraphedQueries(self._network.attack_logits) if graphed else self._network.attack_logits
        self._is_exact = precision == "fp32"
        self._exits_early = early_exit
        self._early_exit: EarlyExit | None = None
        self._compiled = True
        self.num_forwarded = 0

    def forward(self, images: Tensor) -> Tensor:
        """Raises: AllImagesBroken: inside ``during_attack`` only."""
        run = self._early_exit
        if run is None:
            return self._plain(images)
        if len(images) != len(run.y):  # FAB skips images that another batch's rounding misclassifies
            return self._attack_logits(images)
        if run.active is None:
            logits = self._attack_logits(images, run.y)
        elif len(run.active):
            logits = self._attack_logits(images[run.active], run.y[run.active])
        else:
            raise AllImagesBroken
        logits = run.merge(logits)
        run.update(images, logits)
        return logits

    @contextmanager
    def during_attack(
        self, x: Tensor, y: Tensor, is_valid: Callable[[Tensor], Tensor] | None = None, compiled: bool = True
    ) -> Iterator[EarlyExit]:
        """Answer one run of an attack on images x (N, C, H, W) with labels y (N,).

        Args:
            is_valid: as in ``EarlyExit``.
            compiled: False where the attack takes several gradients of one forward pass, which a compiled network
                or a CUDA graph does not allow.
        """
        self._early_exit = EarlyExit(x, y, is_valid if self._exits_early else None)
        self._compiled = compiled
        try:
            yield self._early_exit
        finally:
            self._early_exit = None

    def _attack_logits(self, images: Tensor, y: Tensor | None = None) -> Tensor:
        self.num_forwarded += len(images)
        logits = self._queries(images) if self._compiled else self._network.attack_logits(images, compiled=False)
        if y is not None and not self._is_exact:
            # What low precision misclassifies is computed again: otherwise the attack stops at points that the final
            # check rejects. The values are float32's, the gradients stay.
            with torch.no_grad():
                wrong = (margin(logits, y) >= 0).nonzero().squeeze(1)
                exact = self._plain(images[wrong]) if len(wrong) else None
            if exact is not None:
                logits = logits.clone()  # a network may need its own output for the gradient
                logits.detach()[wrong] = exact
        return logits

    def _plain(self, images: Tensor) -> Tensor:
        with ieee_products():
            return self.model(images)
