"""Backward smoothing (Chen et al. 2020): TRADES whose attack starts with a step towards a random output."""

from torch import Tensor

from losses.base import Parameter, kl_per_image
from losses.trades import TRADES


class BackwardSmoothing(TRADES):
    """CE(f(x), y) + beta * KL(p(x) || p(x')); the attack starts at x and first descends on
    KL(softmax(f(x) + gamma u) || p(x')), u = U(-1, 1) for each class."""

    parameters = (
        Parameter("beta", 10.0, "weight of the KL term: 10"),
        Parameter("gamma", 1.0, "size of the random output: 1; at 0 the first step is rounding noise", above=0.0),
    )
    tag = "bs{beta:g}"
    start = "clean"
    passes = ("nat", "adv")
    source = "Chen et al., Efficient Robust Training via Backward Smoothing, AAAI 2022"

    def first_inner(self, adv_logits: Tensor, nat_logits: Tensor, y: Tensor, u: Tensor) -> Tensor:
        return -kl_per_image(nat_logits + self.gamma * u, adv_logits)
