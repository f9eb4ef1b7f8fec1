"""What changes from epoch to epoch: learning rate, attack, weight perturbation."""

import itertools
import math

import numpy as np

from attacks.pgd import AttackSpec
from engine.config import TrainConfig

MANY = 10**9  # updates an epoch, for the limit of a schedule that counts them


def learning_rate(config: TrainConfig, epoch: int, done: float = 0.5, updates: int = MANY) -> float:
    """The learning rate in an epoch (1, 2, ..., E).

    * ``multistep``: ``lr``, times ``warmup_factor`` in epoch 1, divided by 10 from each of ``decay_epochs`` on, or
      multiplied by its ``decay_factors``. LBGAT's published schedule is 0.02, then 0.1, then 0.01 from 76, 0.001 from
      91.
    * ``piecewise``: the same without warm-up, and already where ``done`` is 1 in the epoch before (Rice, Wong and
      Kolter, ICML 2020).
    * ``cosine``: ``lr`` 0.5 (1 + cos(pi epoch / (E + 1))), as in IKL-AT; ``cosine-from-lr``: the same with
      (epoch - 1) / E, as in DAJAT.
    * ``onecycle``: linear from 0 to ``lr`` at 2/5 of the training and back to 0, as ``superconverge`` of Rice et al.
      2020, but read in the middle of an update.
    * ``cyclic``: linear from 0 to ``lr`` in the middle of the training and back to 0 (their program).
    * ``onecycle-epochs``, ``onecycle-updates``: PyTorch's OneCycleLR, which counts epochs or updates: a cosine from
      ``lr`` / 25 to ``lr`` in the part ``onecycle_up``, and one down to ``lr`` / 250,000.

    Args:
        done: the part of the epoch that is over, in [0, 1].
        updates: updates an epoch, which ``onecycle-updates`` counts.
    """
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / (config.epochs + 1)))
    if config.schedule == "cosine-from-lr":
        return config.lr * 0.5 * (1 + math.cos(math.pi * (epoch - 1) / config.epochs))
    if config.schedule == "onecycle":
        peak = 0.4 * config.epochs
        return float(np.interp(epoch - 1 + done, [0, peak, config.epochs], [0, config.lr, 0]))
    if config.schedule == "cyclic":
        return config.lr * triangle(config, epoch, done)
    if config.schedule.startswith("onecycle-"):
        return one_cycle(config, epoch, done, updates, config.lr / 25, config.lr, config.lr / 250_000)
    if config.schedule not in ("multistep", "piecewise"):
        raise ValueError(f"no learning rate for the schedule {config.schedule!r}")
    if config.schedule == "multistep" and epoch == 1 and config.warmup_factor != 1:
        return config.lr * config.warmup_factor
    early = config.schedule == "piecewise"
    decayed = [epoch - 1 + done >= decay - 1 if early else epoch >= decay for decay in config.decay_epochs]
    if config.decay_factors:
        return config.lr * math.prod(itertools.compress(config.decay_factors, decayed))
    return config.lr / 10 ** sum(decayed)


def momentum(config: TrainConfig, epoch: int, done: float = 0.5, updates: int = MANY) -> float:
    """The momentum: ``momentum``, but for the schedules whose programs cycle it too. ``cyclic``: 0.1 lower in the
    middle of the training; ``onecycle-*``: a cosine from 0.95 to 0.85 at the highest learning rate, and back."""
    if config.schedule == "cyclic":
        return config.momentum - 0.1 * triangle(config, epoch, done)
    if config.schedule.startswith("onecycle-"):
        return one_cycle(config, epoch, done, updates, 0.95, 0.85, 0.95)
    return config.momentum


def triangle(config: TrainConfig, epoch: int, done: float) -> float:
    """From 0 at the start of the training to 1 in its middle and back to 0."""
    return 1 - abs(2 * (epoch - 1 + done) / config.epochs - 1)


def one_cycle(
    config: TrainConfig, epoch: int, done: float, updates: int, first: float, peak: float, last: float
) -> float:
    """PyTorch's OneCycleLR with two cosines: from ``first`` to ``peak`` and on to ``last``, at an epoch or update."""
    by_epoch = config.schedule == "onecycle-epochs"
    count = config.epochs if by_epoch else config.epochs * updates
    i = epoch - 1 if by_epoch else (epoch - 1 + done) * updates
    top = max(config.onecycle_up * count - 1, 0)
    if i <= top:
        begin, end, part = first, peak, i / top if top else 1.0
    else:
        begin, end, part = peak, last, (i - top) / (count - 1 - top)
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * part))


def update_rates(config: TrainConfig, epoch: int, step: int, steps: int, updates: int) -> list[dict[str, float]]:
    """Learning rate and momentum of each of the ``updates`` of a batch.

    Args:
        step: of the epoch, from 0; steps: of an epoch.
    """
    # Where in an update the program reads its schedule: before it, in its middle or after it.
    offset = {"cyclic": 0.0, "onecycle-updates": 0.0, "piecewise": 1.0}.get(config.schedule, 0.5)
    total, rates = steps * updates, []
    for i in range(step * updates, (step + 1) * updates):
        at = config, epoch, (i + offset) / total, total
        rates.append({"lr": learning_rate(*at), "momentum": momentum(*at)})
    return rates


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
