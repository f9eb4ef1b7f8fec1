"""Save the adversarial images of an evaluation."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluation.autoattack.suite import Suite
from utils.errors import UserError
from utils.files import write_atomically


def save_adversarial(
    path: Path,
    model: nn.Module,
    suite: Suite,
    x_adv: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    predicted: np.ndarray,
) -> str:
    """Check the adversarial images and write them.

    They are float32 and may be stored in 8 bits: rounding (``np.rint(255 * x_adv)``) moves a value by at most 1/510, so
    a picture file is within epsilon + 1/510 in l-inf (within epsilon where that is a whole number of 1/255), and where
    no attack succeeded it is exactly the test image. The returned line says how many are still misclassified then.

    Args:
        path: an npz file: ``x_adv``, ``label``, ``prediction`` (of ``x_adv``), ``epsilon``, ``norm``.
        model: images to logits (B, K), in eval mode.
        suite: gives epsilon, norm, device and batch size of the attacks.
        x_adv: (N, C, H, W) float32; the clean image where no attack succeeded.
        images: the test images (N, H, W, C) uint8; labels and predicted: (N,).

    Returns:
        One line about the file.

    Raises:
        UserError: an image is outside the ball or [0, 1], or the file cannot be written.
    """
    num_rounded = 0
    for start in range(0, len(x_adv), suite.batch_size):
        part = slice(start, start + suite.batch_size)
        _check_ball(x_adv[part], images[part], suite, start)
        rounded = torch.from_numpy(np.rint(255 * x_adv[part]) / np.float32(255)).to(suite.device)
        with torch.no_grad():
            num_rounded += int((model(rounded).argmax(1).cpu().numpy() != labels[part]).sum())
    arrays = {
        "x_adv": np.asarray(x_adv, np.float32),
        "label": np.asarray(labels, np.int64),
        "prediction": np.asarray(predicted, np.int64),
        "epsilon": suite.epsilon,
        "norm": suite.norm,
    }
    write_atomically(path, lambda file: np.savez(file, **arrays))
    return (
        f"adversarial images: {path} ({len(labels)} images, {int((predicted != labels).sum())} misclassified; "
        f"{num_rounded} when rounded to 8 bits)"
    )


def _check_ball(x_adv: np.ndarray, images: np.ndarray, suite: Suite, first: int) -> None:
    """Raises: UserError: an image is further than epsilon + 1e-6 from its test image, or outside [0, 1]."""
    flat = x_adv.astype(np.float64).reshape(len(x_adv), -1)
    difference = flat - images.transpose(0, 3, 1, 2).reshape(len(x_adv), -1) / 255
    distance = np.linalg.norm(difference, np.inf if suite.norm == "linf" else 2, axis=1)
    inside = (distance <= suite.epsilon + 1e-6) & (flat.min(1) >= 0) & (flat.max(1) <= 1)
    if not inside.all():
        raise UserError(
            f"the adversarial image of test image {first + int(np.argmin(inside))} is not within epsilon "
            f"{suite.epsilon:g} and [0, 1], so none are saved: autoattack.npz names the attack to report"
        )
