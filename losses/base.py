"""What a training method is: the contract between the losses and the engine."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn


class Objective(nn.Module):
    """A method in three members: ``passes``, ``inner`` and ``outer``.

    State that a method carries belongs in buffers: a checkpoint keeps them through ``state_dict``. It changes in
    ``after_step`` and ``end_epoch`` alone, since weight perturbation evaluates ``outer`` more than once a step.

    Args:
        label_smoothing: of ``self.cross_entropy``, for the cross-entropies that ``outer`` minimises; in [0, 1).

    Attributes:
        passes: the train-mode forward passes that the method needs, in the order in which the published program makes
            them, since each moves the BatchNorm statistics: ``"adv"`` is f(x'), ``"nat"`` f(x) and ``"guide"`` g(x).
            A name with the suffix ``".no_grad"`` is a pass that only moves the statistics. Without an ``"adv"`` pass
            no attack is run.
        start: where the attack starts: ``"gaussian"`` is x + 0.001 N(0, 1), ``"uniform"`` a uniform draw from the
            epsilon-ball, clamped to [0, 1].
        inner_uses_clean: whether ``inner`` looks at ``nat_logits``.
        awp_passes: the passes in a run with adversarial weight perturbation; ``passes`` where empty.
        source: the paper, for ``--help`` and reports.
    """

    passes: tuple[str, ...]
    awp_passes: tuple[str, ...] = ()
    start: ClassVar[str] = "gaussian"
    inner_uses_clean: ClassVar[bool] = False
    source: ClassVar[str]

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.cross_entropy = nn.CrossEntropyLoss(label_smoothing=label_smoothing)

    def inner(self, adv_logits: Tensor, nat_logits: Tensor | None, y: Tensor) -> Tensor:
        """What the attack maximises.

        Args:
            adv_logits: f(x'), (B, C), student in eval mode.
            nat_logits: f(x), (B, C), computed once per attack without gradient; None unless ``inner_uses_clean``.
            y: labels (B,), int64.

        Returns:
            One value per image, (B,).
        """
        raise TypeError(f"{type(self).__name__} trains without an attack")

    def outer(self, logits: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        """Named scalar terms, each weighted as it counts; training minimises their sum.

        Args:
            logits: by pass name, each (B, C), train mode. A ``".no_grad"`` pass puts nothing here.
            y: labels (B,), int64.
        """
        raise TypeError(f"{type(self).__name__} does not define outer()")

    def after_step(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        """Called once a step, after the gradients, without gradient, with the logits (detached) of the loss.

        On CUDA it is captured into the step's graph: change tensors in place, and use no Python state and no .item().
        """

    def end_epoch(self) -> None:
        """Called once after the last step of each epoch."""


def kl_per_image(nat_logits: Tensor, adv_logits: Tensor) -> Tensor:
    """KL(softmax(nat) || softmax(adv)) of each image: (B, C), (B, C) -> (B,), in nats."""
    # With softmax, not log_target: near x' = x the gradient is p(x') - p(x), all rounding, and the published program
    # rounds it so.
    return nn.functional.kl_div(adv_logits.log_softmax(1), nat_logits.softmax(1), reduction="none").sum(1)
