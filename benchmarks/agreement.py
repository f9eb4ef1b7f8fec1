"""Does our PGD-20 find what others' PGD finds? Ours, torchattacks' and foolbox's on the same images.

    pip install torchattacks==3.5.1 foolbox
    python -m benchmarks.agreement --checkpoint checkpoints/MARK/last.pt --n 200 --out results/pgd-agreement

All take the same epsilon (l-inf), step size and number of steps, and start uniformly in the ball, from the same seed.
Writes agreement.json: each one's accuracy, and for how many images its verdict is not ours.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attacks.pgd import AttackSpec, cross_entropy_per_image, perturb, pgd20
from datasets.loader import to_device, to_float
from evaluation.config import EvalConfig
from evaluation.target import load_data, load_network
from utils.device import choose_device, describe
from utils.errors import UserError, run_program
from utils.files import file_hash
from utils.options import parse_epsilon

BATCH = 100
PACKAGES = ("torch", "torchattacks", "foolbox", "eagerpy")


def ours(model: nn.Module, x: Tensor, y: Tensor, spec: AttackSpec, seed: int) -> Tensor:
    generator = torch.Generator(x.device).manual_seed(seed)
    return perturb(model, x, y, cross_entropy_per_image, spec, generator, uses_clean=False)


def torchattacks(model: nn.Module, x: Tensor, y: Tensor, spec: AttackSpec, seed: int) -> Tensor:
    from torchattacks import PGD

    torch.manual_seed(seed)
    return PGD(model, eps=spec.epsilon, alpha=spec.step_size, steps=spec.num_steps, random_start=True)(x, y)


def foolbox(model: nn.Module, x: Tensor, y: Tensor, spec: AttackSpec, seed: int) -> Tensor:
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    torch.manual_seed(seed)
    attack = LinfPGD(abs_stepsize=spec.step_size, steps=spec.num_steps, random_start=True)
    _, x_adv, _ = attack(PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=spec.epsilon)
    return x_adv


def correct_under_each(model: nn.Module, x: Tensor, y: Tensor, spec: AttackSpec) -> dict[str, Tensor]:
    """Which images are right, (n,) bool: unattacked, and under each of the three.

    Args:
        model: in eval mode, its parameters not requiring gradients.
        x: (n, C, H, W) in [0, 1]; y: (n,).
    """
    found: dict[str, list[Tensor]] = {"clean": [], "ours": [], "torchattacks": [], "foolbox": []}
    for seed, (images, labels) in enumerate(zip(x.split(BATCH), y.split(BATCH), strict=True)):
        attacked = {"clean": images}
        attacked |= {
            attack.__name__: attack(model, images, labels, spec, seed) for attack in (ours, torchattacks, foolbox)
        }
        for name, x_adv in attacked.items():
            with torch.no_grad():
                found[name].append(model(x_adv).argmax(1) == labels)
    return {name: torch.cat(parts) for name, parts in found.items()}


def summary(found: dict[str, Tensor]) -> dict[str, Any]:
    """Accuracies in percent, and the number of images on which a verdict differs from ours."""
    return {
        "accuracy": {name: 100 * int(right.sum()) / len(right) for name, right in found.items()},
        "differs_from_ours": {name: int((found[name] != found["ours"]).sum()) for name in ("torchattacks", "foolbox")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--dataset", default="auto")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epsilon", type=parse_epsilon, default=0.031)
    parser.add_argument("--n", type=int, default=200, help="the first N test images")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install torchattacks==3.5.1 foolbox")
    config = EvalConfig(checkpoint=args.checkpoint, dataset=args.dataset, data_dir=args.data_dir)
    target, device = load_network(config), choose_device(args.device)
    data = load_data(config, target)
    pixels, y = to_device(data.x_test[: args.n], data.y_test[: args.n], device)
    spec = pgd20(args.epsilon)
    result = {
        **summary(correct_under_each(target.model.to(device).eval().requires_grad_(False), to_float(pixels), y, spec)),
        "units": "accuracy in percent of the n images; epsilon and step_size in pixels of [0, 1]",
        "model": target.name,
        "checkpoint": args.checkpoint,
        "checkpoint_sha256": file_hash(args.checkpoint),
        "dataset": data.name,
        "n": len(y),
        "norm": spec.norm,
        "epsilon": spec.epsilon,
        "step_size": spec.step_size,
        "num_steps": spec.num_steps,
        "start": spec.start,
        "hardware": describe(device),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "agreement.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("accuracy", "differs_from_ours")}, indent=2))


if __name__ == "__main__":
    run_program(main)
