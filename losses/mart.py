"""MART: misclassification aware adversarial training (Wang et al., ICLR 2020)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import Objective, Parameter

# The published program's constants: they keep the logarithms finite and the weights of the KL above 0.
SMALL = 1e-12
MARGIN_ONE, WEIGHT_ONE = 1.0001, 1.0000001


class MART(Objective):
    """CE(f(x'), y) - log(1 - max_{k != y} p_k(x')) + beta * KL(p(x) || p(x')) (1 - p_y(x))."""

    parameters = (
        Parameter("beta", 6.0, "weight of the KL term (the paper's lambda): 6 for WideResNets, 5 for ResNet-18"),
    )
    tag = "mart{beta:g}"

    passes = ("nat", "adv")
    source = "Wang et al., Improving Adversarial Robustness Requires Revisiting Misclassified Examples, ICLR 2020"

    def inner(self, adv_logits: Tensor, nat_logits: None, y: Tensor) -> Tensor:
        return F.cross_entropy(adv_logits, y, reduction="none")

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        log_p, q = logits["nat"].log_softmax(1), logits["adv"].softmax(1)
        p = log_p.exp()
        others = q.scatter(1, y[:, None], 0.0).amax(1)
        kl = (p * (log_p - torch.log(q + SMALL))).sum(1)
        p_true = p.gather(1, y[:, None]).squeeze(1)
        return {
            "ce": self.cross_entropy(logits["adv"], y),
            "margin": -torch.log(MARGIN_ONE - others + SMALL).mean(),
            "kl": self.beta * (kl * (WEIGHT_ONE - p_true)).mean(),
        }
