"""Natural training: the baseline without an attack."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from losses.base import Objective


class Natural(Objective):
    """CE(f(x), y)."""

    passes = ("nat",)
    source = "empirical risk minimisation, no attack"

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(logits["nat"], y)}
