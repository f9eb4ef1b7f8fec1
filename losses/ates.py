"""ATES: self-paced adversarial training (Sitawarin, Chakraborty and Wagner, 2020)."""

from torch import Tensor

from losses.base import Parameter
from losses.madry import AT
from utils.errors import UserError


class ATES(AT):
    """CE(f(x'), y); the attack of an image stops once max_{k != y} p_k(x') - p_y(x') is above a gap, which grows.

    A gap of 1 or more is plain AT. From the start of epoch ``gap_from`` + 1 on it grows in equal parts from ``gap`` to
    ``final_gap``, which it reaches with epoch ``gap_to``.
    """

    parameters = (
        Parameter("gap", 0.0, "the probability gap at which an attack stops, at first", at_least=-1.0),
        Parameter("final_gap", 0.4, "the gap at the end", at_least=-1.0),
        Parameter("gap_from", 30.0, "epochs before the gap grows", whole=True),
        Parameter("gap_to", 70.0, "epochs after which it grows no more; above gap-from", at_least=1.0, whole=True),
    )
    tag = "ates"
    source = "Sitawarin, Chakraborty and Wagner, Improving Adversarial Robustness Through Progressive Hardening, 2020"

    def __init__(self, num_classes: int = 0, label_smoothing: float = 0.0, **values: float):
        super().__init__(num_classes, label_smoothing, **values)
        if self.gap_to <= self.gap_from:
            raise UserError(f"--gap-to {self.gap_to:g} must be above --gap-from {self.gap_from:g}")
        self.bound = self.gap

    def begin_epoch(self, epoch: int) -> None:
        part = (epoch - self.gap_from) / max(self.gap_to - self.gap_from, 1)
        self.bound = self.gap + (self.final_gap - self.gap) * min(max(part, 0.0), 1.0)

    def moves(self, adv_logits: Tensor, y: Tensor, wrong: Tensor) -> Tensor:
        p = adv_logits.softmax(1)
        others = p.scatter(1, y[:, None], 0.0).amax(1)
        return others - p.gather(1, y[:, None]).squeeze(1) <= self.bound
