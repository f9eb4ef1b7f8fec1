"""LBGAT: learnable boundary guided adversarial training (Cui et al., ICCV 2021), and variants that take one part away.

The variants are for ablations (``sh/ablations.sh``); the paper has no recipe of them.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from losses.base import Objective, Parameter, kl_per_image


class LBGAT(Objective):
    """w * MSE(f(x'), g(x)) + CE(g(x), y) + beta * KL(p(x) || p(x')), eq. (4) and (6) of the paper, where w = 1.

    Nothing is detached: the MSE moves the guide too. Label smoothing is of the guide's cross-entropy.
    """

    parameters = (
        Parameter("beta", 6.0, "weight of the KL term (the papers' alpha): 0 is LBGAT0, 6 is LBGAT6"),
        Parameter("mse_weight", 1.0, "weight of the MSE (w): 1 in the paper", above=0.0),
    )
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
            "mse": self.mse_weight * F.mse_loss(logits["adv"], logits["guide"]),
            "guide_ce": self.cross_entropy(logits["guide"], y),
        }
        if self.beta:
            terms["kl"] = self.beta * kl_per_image(logits["nat"], logits["adv"]).mean()
        return terms


class LBGATKL(LBGAT):
    """w * T^2 KL(softmax(g(x) / T) || softmax(f(x') / T)) + CE(g(x), y) + beta * KL(p(x) || p(x'))."""

    parameters = (
        LBGAT.parameters[0],
        Parameter("kd_weight", 1.0, "weight of the guide's KL (w)", above=0.0),
        Parameter("temperature", 4.0, "T, by which logits are divided in the guide's KL", above=0.0),
    )
    tag = "lbgat{beta:g}-kl"
    source = f"ablation of {LBGAT.source}; softened KL of Hinton et al., 2015"
    mse_weight = 1.0

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        soft_guide, soft_adv = (logits[name] / self.temperature for name in ("guide", "adv"))
        terms = super().outer(logits, y) | {
            "kd": self.kd_weight * self.temperature**2 * kl_per_image(soft_guide, soft_adv).mean()
        }
        del terms["mse"]
        return terms


class LBGATFrozen(LBGAT):
    """w * MSE(f(x'), g(x)) + beta * KL(p(x) || p(x')), with a guide (``--guide-checkpoint``) that does not learn."""

    tag = "lbgat{beta:g}-frozen"
    source = f"ablation of {LBGAT.source}"

    @property
    def passes(self) -> tuple[str, ...]:
        return tuple(name.replace("guide", "frozen") for name in super().passes)

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        terms = super().outer({**logits, "guide": logits["frozen"]}, y)
        del terms["guide_ce"]
        return terms


class LBGATNoClean(LBGAT):
    """LBGAT0 without the forward pass f(x), which only moves the BatchNorm statistics that the attack uses."""

    parameters = (LBGAT.parameters[1],)
    tag = "lbgat0-no-clean"
    source = f"ablation of {LBGAT.source}"
    beta = 0.0
    passes = ("adv", "guide")
