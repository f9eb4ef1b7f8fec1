"""FAT: friendly adversarial training (Zhang et al., ICML 2020), alone and with the losses of TRADES and MART.

The attack of an image ends when x' has been misclassified in more than tau tests, counted altogether; each test is
before a step, so that with tau = 0 an image whose start is misclassified is trained on as it starts.
"""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from losses.base import Parameter
from losses.madry import AT
from losses.mart import MART
from losses.trades import TRADES

SOURCE = "Zhang et al., Attacks Which Do Not Kill Training Make Adversarial Learning Stronger, ICML 2020"
OMEGA = 0.001


def tau(schedule: str) -> Parameter:
    return Parameter(
        "tau", -1.0, f"how often x' may be misclassified before its attack ends; -1 is {schedule}", -1.0, whole=True
    )


class Friendly:
    """The part that the three methods share: when the attack of an image ends.

    Attributes:
        tau_rises_after: the epochs (1, 2, ...) after which the scheduled tau is one higher, from 0.
    """

    tau_rises_after: ClassVar[Sequence[int]]
    bound = 0.0

    def begin_epoch(self, epoch: int) -> None:
        scheduled = sum(epoch > last for last in self.tau_rises_after)
        self.bound = scheduled if self.tau < 0 else self.tau

    def moves(self, adv_logits: Tensor, y: Tensor, wrong: Tensor) -> Tensor:
        return wrong <= self.bound


class FAT(Friendly, AT):
    """CE(f(x'), y); the attack of an image stops soon after x' is misclassified, and its steps are noisy."""

    parameters = (tau("0 to epoch 50, 1 to 90, then 2"),)
    tag = "fat"
    tau_rises_after = (50, 90)
    step_noise = OMEGA
    source = SOURCE


class FATTRADES(Friendly, TRADES):
    """CE(f(x), y) + beta * KL(p(x) || p(x')); the attack of an image stops soon after x' is misclassified."""

    parameters = (*TRADES.parameters, tau("0 to epoch 30, 1 to 50, 2 to 70, then 3"))
    tag = "fat-trades{beta:g}"
    tau_rises_after = (30, 50, 70)
    start = "gaussian-clamped"
    passes = ("nat", "adv")
    source = SOURCE


class FATMART(Friendly, MART):
    """MART's loss; the attack of an image stops soon after x' is misclassified."""

    parameters = (*MART.parameters, tau("0 to epoch 20, 1 to 40, 2 to 60, 3 to 80, then 4"))
    tag = "fat-mart{beta:g}"
    tau_rises_after = (20, 40, 60, 80)
    start = "gaussian-clamped"
    passes = ("adv", "nat")  # not MART's order
    source = SOURCE
