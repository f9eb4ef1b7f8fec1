"""What a recipe costs: GFLOP per image, counted over one real training step without computing it.

python -m benchmarks.cost --method lbgat --beta 6 --dataset cifar100 --epochs 100       (any flags of train_lbgat.py)
"""

from engine import cost as engine_cost
from engine.command_line import parse_train
from engine.config import TrainConfig
from utils.errors import run_program

IMAGES = {"cifar10": (50_000, 10, 32), "cifar100": (50_000, 100, 32), "digits": (1_437, 10, 16)}
# Of a whole LBGAT6 step in bf16 on one H100, batch 128 (results/train-step-h100). A wide network is like WRN-34-10.
H100_TFLOPS = {"WRN-34-10": 369, "ResNet-18": 213}


def step_gflop(config: TrainConfig) -> float:
    """GFLOP per image of a training step of the recipe; see ``engine.cost.step_gflop``."""
    _, num_classes, size = IMAGES[config.dataset]
    return engine_cost.step_gflop(config, num_classes, size, size)


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
