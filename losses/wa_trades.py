"""WA-TRADES, the PyTorch form of Gowal et al. (2020), and SCORE (Pang et al., ICML 2022) on top of it.

Their recipes also need Nesterov momentum, weight averages with a warm-up, OneCycle and no decay of BatchNorm: see
the scripts ``sh/train_wa_trades_*`` and ``sh/train_score_*``.
"""

from collections.abc import Mapping

from torch import Tensor

from losses.base import Parameter, smooth_labels
from losses.trades import TRADES

BN_MOMENTUM = Parameter(
    "bn_momentum", 0.01, "BatchNorm's momentum, but in the first update, where it is 1; 0 leaves the network's"
)


class WATRADES(TRADES):
    """CE(f(x), y) + beta * KL(p(x) || p(x')); the attack starts uniformly and runs on the batch's own statistics."""

    parameters = (*TRADES.parameters, BN_MOMENTUM)
    tag = "wa-trades{beta:g}"
    start = "uniform"
    attack_mode = "batch"
    passes = ("nat", "adv")
    source = (
        "Gowal et al., Uncovering the Limits of Adversarial Training against Norm-Bounded Adversarial Examples, 2020"
    )


def squared_distance(p: Tensor, q: Tensor) -> Tensor:
    """sum_k (p_k - q_k)^2 of each image: (B, C), (B, C) -> (B,)."""
    return (p - q).square().sum(1)


class SCORE(WATRADES):
    """|p(x) - t|^2 + beta * relu(|p(x') - p(x)|^2 - c), t the (smoothed) label; the attack maximises |p(x') - p(x)|^2.

    ``--label-smoothing s`` gives the label 1 - s and each other class s / (C - 1).
    """

    parameters = (
        Parameter("beta", 4.0, "weight of the robust term: 4 (3 in the released weights)"),
        Parameter("clip_value", 0.0, "what the robust term must exceed to count (c): 0"),
        BN_MOMENTUM,
    )
    tag = "score{beta:g}"
    source = "Pang et al., Robustness and Accuracy Could Be Reconcilable by (Proper) Definition, ICML 2022"

    def inner(self, adv_logits: Tensor, nat_logits: Tensor, y: Tensor) -> Tensor:
        return squared_distance(adv_logits.softmax(1), nat_logits.softmax(1))

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        p, q = logits["nat"].softmax(1), logits["adv"].softmax(1)
        labels = smooth_labels(y, p, self.label_smoothing)
        robust = (squared_distance(q, p) - self.clip_value).relu()
        return {"mse": squared_distance(p, labels).mean(), "robust": self.beta * robust.mean()}
