"""AT: PGD adversarial training (Madry et al., ICLR 2018)."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from losses.base import Objective


class AT(Objective):
    """CE(f(x'), y), eq. (2.1) of the paper; the attack starts at a uniform draw from the epsilon-ball."""

    tag = "at"
    passes = ("adv",)
    start = "uniform"
    source = "Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018"

    def inner(self, adv_logits: Tensor, nat_logits: None, y: Tensor) -> Tensor:
        return F.cross_entropy(adv_logits, y, reduction="none")

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        return {"ce": self.cross_entropy(logits["adv"], y)}
