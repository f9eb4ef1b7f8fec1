"""DKL, IKL and GKL: the Kullback-Leibler divergence taken apart and improved (Cui et al. 2024, 2025).

With n = f(x), a = f(x'), d = n - a and class weights w_j, all three are

    beta * wMSE + alpha * CE(p(x), p(x')),    wMSE of one image = 1/4 sum_jk w_j w_k (d_j - d_k)^2

with the gradient of p(x) stopped in the CE. They differ in the weights and in what the wMSE moves.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from losses.base import Objective, Parameter
from utils.options import require


def soft_cross_entropy(nat_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """CE(p(x), p(x')) of each image, p(x) constant: (B, C), (B, C) -> (B,), in nats."""
    return -(nat_logits.detach().softmax(1) * adv_logits.log_softmax(1)).sum(1)


def weighted_mse(d: Tensor, w: Tensor) -> Tensor:
    """1/4 sum_jk w_j w_k (d_j - d_k)^2 of each image in O(C): (B, C), (B, C) -> (B,).

    It is half the squared total weight times the weighted variance of d. The mean is taken off before squaring: the
    shorter form sum w d^2 - (sum w d)^2 would lose all digits where d is nearly constant.
    """
    total = w.sum(1, keepdim=True)
    centred = d - (w * d).sum(1, keepdim=True) / total
    return 0.5 * total.squeeze(1) * (w * centred**2).sum(1)


ALPHA = Parameter("alpha", 4.0, "weight of CE(p(x), p(x')), which moves f(x'): 4, also 5 (Cui et al. 2024)")
BETA = Parameter("beta", 20.0, "weight of the wMSE: 20 (Cui et al. 2024)")


class DKL(Objective):
    """CE(f(x), y) + DKL(f(x), f(x')): w = p(x), constant, and the wMSE moves f(x) alone.

    At alpha = beta its gradients are those of alpha * KL(p(x) || p(x')), Theorem 1 of the paper.
    """

    parameters = (ALPHA, BETA)
    tag = "dkl-a{alpha:g}b{beta:g}"
    passes = ("adv", "nat")
    inner_uses_clean = True
    source = "Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024, Theorem 1"

    def inner(self, adv_logits: Tensor, nat_logits: Tensor, y: Tensor) -> Tensor:
        return soft_cross_entropy(nat_logits, adv_logits)  # the wMSE has no gradient in x'

    def wmse(self, nat_logits: Tensor, adv_logits: Tensor, y: Tensor) -> Tensor:
        """The wMSE term of a batch, without its weight beta: (B, C), (B, C), (B,) -> scalar."""
        return weighted_mse(nat_logits - adv_logits.detach(), nat_logits.detach().softmax(1)).mean()

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        nat, adv = logits["nat"], logits["adv"]
        return {
            "ce": self.cross_entropy(nat, y),
            "wmse": self.beta * self.wmse(nat, adv, y),
            "soft_ce": self.alpha * soft_cross_entropy(nat, adv).mean(),
        }


class IKL(DKL):
    """CE(f(x), y) + IKL(f(x), f(x')): w = S[y], the mean prediction for the class, and the wMSE moves f(x') too.

    S starts uniform; after every epoch it is the mean of softmax(f(x) / temperature) over that epoch's training images
    of each class. A class that did not occur keeps its row. The attack maximises
    CE(p(x), p(x')) + attack_beta * wMSE.
    """

    parameters = (
        ALPHA,
        BETA,
        Parameter("temperature", 4.0, "of the class prior: 4, also 2 (Cui et al. 2024)", above=0.0),
        Parameter("attack_beta", 1.0, "weight of the wMSE in the attack: 1 on CIFAR-100, 0 on CIFAR-10"),
    )
    tag = "ikl-a{alpha:g}b{beta:g}t{temperature:g}"
    source = "Cui et al., Decoupled Kullback-Leibler Divergence Loss, NeurIPS 2024"

    def __init__(self, num_classes: int, label_smoothing: float = 0.0, **values: float):
        super().__init__(num_classes, label_smoothing, **values)
        require(num_classes > 1, f"{type(self).__name__} has a prior of each class: pass num_classes")
        self.register_buffer("prior", torch.full((num_classes, num_classes), 1 / num_classes))
        self.register_buffer("prior_sums", torch.zeros(num_classes, num_classes))  # of the epoch in progress

    def inner(self, adv_logits: Tensor, nat_logits: Tensor, y: Tensor) -> Tensor:
        value = soft_cross_entropy(nat_logits, adv_logits)
        if self.attack_beta:
            value = value + self.attack_beta * weighted_mse(nat_logits - adv_logits, self.prior[y])
        return value

    def wmse(self, nat_logits: Tensor, adv_logits: Tensor, y: Tensor) -> Tensor:
        return weighted_mse(nat_logits - adv_logits, self.prior[y]).mean()

    def after_step(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        predictions = (logits["nat"] / self.temperature).softmax(1)
        self.prior_sums.index_add_(0, y, predictions.to(self.prior_sums.dtype))

    def end_epoch(self) -> None:
        totals = self.prior_sums.sum(1, keepdim=True)
        self.prior.copy_(torch.where(totals > 0, self.prior_sums / totals, self.prior))
        self.prior_sums.zero_()


class GKL(IKL):
    """CE(f(x), y) + GKL(f(x), f(x')): w = S[y]^gamma, and the wMSE is normalised by the batch's total weight.

    The attack is IKL's (gamma = 1). At gamma = 0 the wMSE is a plain MSE.
    """

    parameters = (
        ALPHA,
        BETA,
        Parameter("gamma", 0.4, "exponent of the class prior: 0.4 on CIFAR-100, 0.2 on CIFAR-10 (Cui et al. 2025)"),
        Parameter("temperature", 1.0, "of the class prior: 1 (Cui et al. 2025)", above=0.0),
        IKL.parameters[-1],
    )
    tag = "gkl-a{alpha:g}b{beta:g}g{gamma:g}t{temperature:g}"
    source = "Cui et al., Generalized Kullback-Leibler Divergence Loss, 2025"

    def wmse(self, nat_logits: Tensor, adv_logits: Tensor, y: Tensor) -> Tensor:
        w = self.prior[y] ** self.gamma
        return weighted_mse(nat_logits - adv_logits, w).sum() / w.sum(1).square().sum()
