"""LBGAT: learnable boundary guided adversarial training (Cui et al., ICCV 2021)."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from losses.base import Objective, Parameter, kl_per_image


class LBGAT(Objective):
    """MSE(f(x'), g(x)) + CE(g(x), y) + beta * KL(p(x) || p(x')), eq. (4) and (6) of the paper.

    Nothing is detached: the MSE moves the guide too. Label smoothing is of the guide's cross-entropy.
    """

    parameters = (Parameter("beta", 6.0, "weight of the KL term (the papers' alpha): 0 is LBGAT0, 6 is LBGAT6"),)
    tag = "lbgat{beta:g}"
    inner_uses_clean = True
    source = "Cui et al., Learnable Boundary Guided Adversarial Training, ICCV 2021"

    @property
    def passes(self) -> tuple[str, ...]:
        # At beta = 0 the clean pass still runs: it moves the BatchNorm statistics that the attack uses.
        return ("adv", "nat" if self.beta else "nat.no_grad", "guide")

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
