"""What a recipe costs: GFLOP per image, counted over one real training step without computing it.

python -m benchmarks.cost --method lbgat --beta 6 --dataset cifar100 --epochs 100       (any flags of train_lbgat.py)
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from attacks.pgd import AttackSpec
from engine.config import TrainConfig, parse_train
from engine.steps import create_step
from losses import create_objective
from models import create_model
from models.batchnorm import add_second_batchnorms
from utils.errors import run_program

IMAGES = {"cifar10": (50_000, 10, 32), "cifar100": (50_000, 100, 32), "digits": (1_437, 10, 16)}
# Of a whole LBGAT6 step in bf16 on one H100, batch 128 (results/train-step-h100). A wide network is like WRN-34-10.
H100_TFLOPS = {"WRN-34-10": 369, "ResNet-18": 213}


class FlopCounter(TorchDispatchMode):
    """As FlopCounterMode, without its hooks on modules, which the gradients of an attack do not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        return result


def step_gflop(config: TrainConfig) -> float:
    """GFLOP per image of a training step of the recipe, once weight perturbation has set in, if it has any; a
    multiply-add counts as two, and only convolutions and matrix products count."""
    _, num_classes, size = IMAGES[config.dataset]
    batch = 2
    with torch.device("meta"):
        student = create_model(config.student, num_classes)
        objective = create_objective(config.method, num_classes, **config.parameters)
        if objective.bn_sets > 1:
            add_second_batchnorms(student)
        objective.moves = None  # as if every image took every step of the attack
        guided = {"guide", "helper"} & set(objective.passes)
        guide = create_model(config.guide, num_classes) if guided else None
        nets = [net for net in (student, guide) if net is not None]
        optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], lr=config.lr)
        attack = AttackSpec(config.epsilon, config.step_size, config.num_steps, config.norm, objective.start)
        weights = (1.0, config.augment_view_weight)
        step = create_step(
            student, guide, objective, optimizer, attack, awp_gamma=config.awp_gamma, view_weights=weights
        )
        x, y = torch.empty(batch, 3, size, size), torch.zeros(batch, dtype=torch.int64)
        with FlopCounter() as counter:
            step([x] * max(objective.views, 1 + (config.augment_view_weight > 0)), y)
    return counter.total / batch / 1e9


def cost(config: TrainConfig, gflop: int | None = None) -> str:
    """One line: GFLOP per image (counted unless given), and the hours that training is estimated to take, without the
    evaluations."""
    gflop = gflop or round(step_gflop(config))
    like = "WRN-34-10" if config.student.startswith("wrn") else "ResNet-18"
    hours = IMAGES[config.dataset][0] * config.epochs * gflop / H100_TFLOPS[like] / 3.6e6
    return (
        f"{gflop} GFLOP per image; in bf16 on one H100 an estimated {hours:.1f} hours "
        f"(at the {H100_TFLOPS[like]} TFLOP/s measured for an LBGAT6 step of {like})"
    )


def main() -> None:
    print(cost(parse_train()))


if __name__ == "__main__":
    run_program(main)
