"""TRADES (Zhang et al., ICML 2019)."""

from collections.abc import Mapping

from torch import Tensor

from losses.base import Objective, Parameter, kl_per_image


class TRADES(Objective):
    """CE(f(x), y) + beta * KL(p(x) || p(x')), eq. (5) of the paper."""

    parameters = (Parameter("beta", 6.0, "weight of the KL term (1 / lambda in the paper): 6 is TRADES6"),)
    tag = "trades{beta:g}"

    # The published program computes f(x) a second time for the KL; its logits are those of the first pass, so here
    # the second pass only moves the BatchNorm statistics.
    passes = ("nat", "adv", "nat.no_grad")
    awp_passes = ("adv", "nat")  # as TRADES-AWP's program makes them
    inner_uses_clean = True
    source = "Zhang et al., Theoretically Principled Trade-off between Robustness and Accuracy, ICML 2019"

    def inner(self, adv_logits: Tensor, nat_logits: Tensor, y: Tensor) -> Tensor:
        return kl_per_image(nat_logits, adv_logits)

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        return {
            "ce": self.cross_entropy(logits["nat"], y),
            "kl": self.beta * kl_per_image(logits["nat"], logits["adv"]).mean(),
        }
