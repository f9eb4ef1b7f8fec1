"""The plain training step that every speed figure is a ratio to: the formulas written down in the obvious way.

As the published program does it: the clean logits are computed anew in every attack step, images and weights are NCHW,
arithmetic is float32, nothing is compiled, parameters stay trainable during the attack, SGD is the default one, and
at beta = 0 the KL term is computed and multiplied by 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReferenceStep:
    """One LBGAT step; 36 forward equivalents of the student (10 x (1 + 2) in the attack, 2 x 3 in the update).

    Args:
        clean_once, frozen: two of the optimizations, for the ablation: compute the clean logits once per attack;
            switch the parameters' gradients off during it.
    """

    def __init__(
        self,
        student: nn.Module,
        guide: nn.Module,
        optimizer: torch.optim.Optimizer,
        beta: float = 6.0,
        epsilon: float = 0.031,
        step_size: float = 0.007,
        num_steps: int = 10,
        clean_once: bool = False,
        frozen: bool = False,
    ):
        self.student, self.guide, self.optimizer, self.beta = student, guide, optimizer, beta
        self.epsilon, self.step_size, self.num_steps = epsilon, step_size, num_steps
        self.clean_once, self.frozen = clean_once, frozen

    def __call__(self, x: Tensor, y: Tensor, start: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """x (B, 3, H, W) in [0, 1], y (B,), start like x -> x' and the three terms."""
        x_adv = self.attack(x, start)
        self.student.train()
        self.guide.train()
        self.optimizer.zero_grad()
        adv_logits = self.student(x_adv)
        nat_logits = self.student(x)
        guide_logits = self.guide(x)
        kl = F.kl_div(F.log_softmax(adv_logits, dim=1), F.softmax(nat_logits, dim=1), reduction="batchmean")
        terms = {
            "mse": F.mse_loss(adv_logits, guide_logits),
            "guide_ce": F.cross_entropy(guide_logits, y),
            "kl": self.beta * kl,
        }
        sum(terms.values()).backward()
        self.optimizer.step()
        return x_adv, terms

    def attack(self, x: Tensor, start: Tensor) -> Tensor:
        """x' by num_steps signed gradient steps on KL(p(x) || p(x'))."""
        self.student.eval()
        if self.frozen:
            self.student.requires_grad_(False)
        p = F.softmax(self.student(x), dim=1).detach() if self.clean_once else None
        x_adv = start.detach()
        for _ in range(self.num_steps):
            x_adv.requires_grad_()
            q = p if self.clean_once else F.softmax(self.student(x), dim=1)
            kl = F.kl_div(F.log_softmax(self.student(x_adv), dim=1), q, reduction="sum")
            gradient = torch.autograd.grad(kl, [x_adv])[0]
            x_adv = x_adv.detach() + self.step_size * torch.sign(gradient.detach())
            x_adv = torch.min(torch.max(x_adv, x - self.epsilon), x + self.epsilon)
            x_adv = torch.clamp(x_adv, 0.0, 1.0)
        self.student.requires_grad_(True)
        return x_adv.detach()
