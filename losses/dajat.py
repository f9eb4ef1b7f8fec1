"""DAJAT: diverse augmentation-based joint adversarial training (Addepalli et al., NeurIPS 2022)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.base import Parameter, kl_per_image, smooth_labels
from losses.trades import TRADES


class DAJAT(TRADES):
    """The mean over three views of CE(f(x), y) + beta * KL(p(x) || p(x')), plus js * JS(p(x_1), p(x_2), p(x_3)).

    The first view is cropped and flipped, the others are augmented too (``--augment autoaugment``) and have BatchNorm
    layers of their own. The step is ``engine.steps.joint_views``; the logits of view 2 are ``"nat2"``, ``"adv2"``.
    ``--label-smoothing s`` gives the label 1 - s and each other class s / (C - 1).
    """

    parameters = (
        Parameter("beta", 9.0, "weight of the KL term: 9 on CIFAR-100; 11 (ResNet-18), 10 (WRN) on CIFAR-10"),
        Parameter("js", 2.0, "weight of the Jensen-Shannon term: 2; 3 for WRN on CIFAR-10"),
    )
    tag = "dajat{beta:g}"
    step = "joint-views"
    passes = ("nat", "adv")  # of each view
    bn_sets = 2
    views = 3
    source = "Addepalli, Jain and Babu, Efficient and Effective Augmentation Strategy for Adversarial Training, " \
        "NeurIPS 2022"  # fmt: skip

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        nat, adv = ([logits[f"{kind}{i}"] for i in ("", *range(2, self.views + 1))] for kind in ("nat", "adv"))
        labels = smooth_labels(y, nat[0], self.label_smoothing)
        p = [value.softmax(1) for value in nat]
        mean = (sum(p) / self.views).clamp(1e-7, 1).log()
        return {
            "ce": sum(F.cross_entropy(value, labels) for value in nat) / self.views,
            "kl": self.beta * sum(kl_per_image(n, a).mean() for n, a in zip(nat, adv, strict=True)) / self.views,
            "js": self.js * sum(F.kl_div(mean, q, reduction="batchmean") for q in p) / self.views,
        }

    def perturbed_loss(self, logits: Mapping[str, Tensor], y: Tensor) -> Tensor:
        """What the weight perturbation ascends: TRADES of the first view, without label smoothing."""
        kl = kl_per_image(logits["nat"], logits["adv"]).mean()
        return torch.add(F.cross_entropy(logits["nat"], y), kl, alpha=self.beta)
