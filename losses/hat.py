"""HAT: helper-based adversarial training (Rade and Moosavi-Dezfooli, ICLR 2022)."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from losses.base import Parameter
from losses.trades import TRADES


class HAT(TRADES):
    """CE(f(x), y) + beta * KL(p(x) || p(x')) + gamma * CE(f(x + h (x' - x)), y_h), where y_h is what a frozen,
    naturally trained network (``--guide-checkpoint``) predicts for x'."""

    parameters = (
        Parameter("beta", 2.5, "weight of the KL term: 2.5 (3.5 with extra data)"),
        Parameter("gamma", 0.5, "weight of the helper term: 0.5"),
        Parameter("h", 2.0, "how far beyond x' the third image lies: x + h (x' - x), not clipped: 2"),
    )
    tag = "hat{beta:g}"
    passes = ("nat", "adv", "far", "helper")
    source = "Rade and Moosavi-Dezfooli, Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness " \
        "Trade-off, ICLR 2022"  # fmt: skip

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        helper = F.cross_entropy(logits["far"], logits["helper"].argmax(1))
        return super().outer(logits, y) | {"helper": self.gamma * helper}
