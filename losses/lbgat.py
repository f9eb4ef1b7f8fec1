"""LBGAT: learnable boundary guided adversarial training (Cui et al., ICCV 2021)."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from losses.base import Objective, kl_per_image


class LBGAT(Objective):
    """MSE(f(x'), g(x)) + CE(g(x), y) + beta * KL(p(x) || p(x')), eq. (4) and (6) of the paper.

    Nothing is detached: the MSE moves the guide too.

    Args:
        beta: weight of the TRADES term, at least 0 (the papers' alpha): 0 is LBGAT0, 6 is LBGAT6.
        label_smoothing: of the guide's cross-entropy, in [0, 1).
    """

    inner_uses_clean = True
    source = "Cui et al., Learnable Boundary Guided Adversarial Training, ICCV 2021"

    def __init__(self, beta: float, label_smoothing: float = 0.0):
        super().__init__(label_smoothing)
        self.beta = beta
        # At beta = 0 the clean pass still runs: it moves the BatchNorm statistics that the attack uses.
        self.passes = ("adv", "nat" if beta else "nat.no_grad", "guide")

    def inner(self, adv_logits: Tensor, nat_logits: Tensor, y: Tensor) -> Tensor:
        return kl_per_image(nat_logits, adv_logits)

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        terms = {
            "mse": F.mse_loss(logits["adv"], logits["guide"]),
            "guide_ce": self.cross_entropy(logits["guide"], y),
        }
        if self.beta:
            terms["kl"] = self.beta * kl_per_image(logits["nat"], logits["adv"]).mean()
        return terms
