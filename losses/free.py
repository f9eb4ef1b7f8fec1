"""Free adversarial training (Shafahi et al., NeurIPS 2019)."""

from losses.base import Parameter
from losses.madry import AT


class Free(AT):
    """CE(f(x + delta), y), m updates a batch; each backward pass serves delta and the weights, delta first.

    The step is ``engine.steps.free``. delta keeps its values from batch to batch; ``--step-size`` is its step
    (the recipes: epsilon) and ``--num-steps`` has no effect.
    """

    parameters = (
        Parameter("replays", 8.0, "updates a batch (m): 8 on CIFAR, 4 on ImageNet", at_least=1, whole=True),
        Parameter(
            "clip_image",
            0.0,
            "1 trains on x + delta clipped to [0, 1] (the authors' programs); 0 keeps delta so that x + delta is in "
            "[0, 1] (the PyTorch program of Wong et al. 2020)",
        ),
    )
    tag = "free{replays:g}"
    step = "free"
    source = "Shafahi et al., Adversarial Training for Free!, NeurIPS 2019"
