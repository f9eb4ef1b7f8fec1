"""Natural training: the baseline without an attack."""

from collections.abc import Mapping

from torch import Tensor

from losses.base import Objective


class Natural(Objective):
    """CE(f(x), y)."""

    tag = "natural"
    passes = ("nat",)
    source = "empirical risk minimisation, no attack"

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        return {"ce": self.cross_entropy(logits["nat"], y)}
