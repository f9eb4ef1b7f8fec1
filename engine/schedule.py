"""What changes from epoch to epoch: learning rate, attack, weight perturbation."""

import math

import numpy as np

from attacks.pgd import AttackSpec
from engine.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: int, done: float = 0.5) -> float:
    """The learning rate in an epoch (1, 2, ..., E).

    * ``multistep``: ``lr``, times ``warmup_factor`` in epoch 1, divided by 10 from each of ``decay_epochs`` on. LBGAT's
      published schedule is 0.02, then 0.1, then 0.01 from 76, 0.001 from 91.
    * ``cosine``: ``lr`` 0.5 (1 + cos(pi epoch / (E + 1))), as in IKL-AT.
    * ``onecycle``: linear from 0 to ``lr`` at 2/5 of the training and back to 0 (Wong, Rice and Kolter, ICLR 2020).

    Args:
        done: the part of the epoch that is over, in [0, 1]; only ``onecycle`` changes within an epoch.
    """
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / (config.epochs + 1)))
    if config.schedule == "onecycle":
        peak = 0.4 * config.epochs
        return float(np.interp(epoch - 1 + done, [0, peak, config.epochs], [0, config.lr, 0]))
    if epoch == 1 and config.warmup_factor != 1:
        return config.lr * config.warmup_factor
    return config.lr / 10 ** sum(epoch >= decay for decay in config.decay_epochs)


def attack_spec(config: TrainConfig, start: str, epoch: int) -> AttackSpec:
    """The training attack of an epoch (1, 2, ...), which starts as the method says.

    With ``epsilon_ramp`` the radius is epsilon epoch / epochs, so exactly epsilon in the last epoch; with
    ``step_ratio`` the step is that part of the epoch's radius.
    """
    ramp = epoch / config.epochs if config.epsilon_ramp == "linear" else 1.0
    epsilon = config.epsilon * ramp
    step_size = config.step_ratio * epsilon if config.step_ratio else config.step_size
    return AttackSpec(epsilon, step_size, config.num_steps, config.norm, start)


def awp_gamma(config: TrainConfig, epoch: int) -> float:
    """The size of the weight perturbation in an epoch (1, 2, ...): 0 before ``awp_start_epoch``."""
    return config.awp_gamma if epoch >= config.awp_start_epoch else 0.0
