"""Accuracy of a checkpoint on the whole test set, clean and under PGD-20, as training measures it on fewer images.

python -m results.pgd20 checkpoints/study/at-seed1/last.pt --epsilons 0.031,8/255 --out Logs/study/at-seed1/pgd20.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets import load_dataset
from datasets.loader import to_device
from engine.validate import clean_accuracy, pgd_accuracy
from models.accelerate import AcceleratedModel, choose_acceleration
from models.checkpoint import load_network
from models.weights import load_file
from utils.device import choose_device, set_precision
from utils.errors import UserError, run_program
from utils.files import write_atomically
from utils.options import PRECISIONS, parse_epsilon


def measure(
    checkpoint: Path, epsilons: Sequence[str | float], data_dir: str, device: torch.device, precision: str = "fp32"
) -> dict[str, object]:
    """Clean and PGD-20 accuracy in percent on all test images of the run's data set, in the run's norm.

    Raises:
        UserError: the file does not hold a run's settings, as last.pt and best.pt do.
    """
    content = load_file(checkpoint)
    if not isinstance(content, dict) or "config" not in content:
        raise UserError(f"{checkpoint} does not say how it was trained: pass a run's last.pt or best.pt")
    config = content["config"]
    radii = [parse_epsilon(text, norm=config["norm"]) for text in epsilons]
    data = load_dataset(config["dataset"], data_dir)
    images, labels = to_device(data.x_test, data.y_test, device)
    model = load_network(content, checkpoint).model.to(device)
    network = AcceleratedModel(model, choose_acceleration(device, "off", 0), set_precision(precision, device))
    return {
        "images": len(images),
        "clean": clean_accuracy(network, images, labels),
        "pgd20": {f"{e:.6g}": pgd_accuracy(network, images, labels, e, config["norm"]) for e in radii},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--epsilons", required=True)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    figures = measure(
        args.checkpoint, args.epsilons.split(","), args.data_dir, choose_device(args.device), args.precision
    )
    write_atomically(args.out, lambda file: file.write((json.dumps(figures, indent=2) + "\n").encode()))


if __name__ == "__main__":
    run_program(main)
