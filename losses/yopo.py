"""YOPO: you only propagate once (Zhang et al., NeurIPS 2019), and its form for TRADES."""

from losses.base import Parameter
from losses.madry import AT
from losses.trades import TRADES

SOURCE = "Zhang et al., You Only Propagate Once: Accelerating Adversarial Training via Maximal Principle, NeurIPS 2019"


class YOPO(AT):
    """The sum over m full passes of CE(f(x + eta), y); after each, ``--num-steps`` steps through the first layer alone.

    The step is ``engine.steps.yopo``: gradients add up over the passes, so that the learning rate of the recipes has
    the 1 / m.
    """

    parameters = (
        Parameter("full_passes", 5.0, "full forward and backward passes a batch (m)", at_least=1, whole=True),
        Parameter(
            "wide",
            0.0,
            "1 is the WRN program, which leaves the first layer's plain gradient out of the very first pass; 0 the "
            "ResNet-18 program",
        ),
    )
    tag = "yopo{full_passes:g}"
    step = "yopo"
    source = SOURCE


class TRADESYOPO(TRADES):
    """CE(f(x), y) + beta * KL(p(x) || p(x')), beta 1 in the recipes; the attack is m full passes, each followed by
    ``--num-steps`` steps through the first layer alone."""

    parameters = (
        Parameter("beta", 1.0, "weight of the KL term: 1 in the program, where it is no setting"),
        Parameter("full_passes", 2.0, "full passes of the attack (m): 2 with 5 steps, 3 with 4", 1, whole=True),
    )
    tag = "trades-yopo{full_passes:g}"
    step = "trades-yopo"
    passes = ("nat", "adv")
    source = SOURCE
