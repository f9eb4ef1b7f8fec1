"""Learning rate by epoch."""

from engine.config import TrainConfig


def learning_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate of an epoch (1, 2, ...): ``lr``, times ``warmup_factor`` in epoch 1, divided by 10 from each of
    ``decay_epochs`` on. LBGAT's published schedule is 0.02, then 0.1, then 0.01 from 76, 0.001 from 91."""
    if epoch == 1 and config.warmup_factor != 1:
        return config.lr * config.warmup_factor
    return config.lr / 10 ** sum(epoch >= decay for decay in config.decay_epochs)
