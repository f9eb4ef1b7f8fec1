"""The adversarial images of an evaluation as a file."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from evaluation.autoattack.suite import Suite
from utils.errors import UserError
from utils.files import write_atomically


def save_adversarial(
    path: Path,
    queries: nn.Module,
    suite: Suite,
    x_adv: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
) -> str:
    """Write the adversarial images, once it is sure that they are what they are said to be.

    They are float32 and may be stored in 8 bits: rounding (``np.rint(255 * x_adv)``) moves a value by at most 1/510, so
    a picture file is within epsilon + 1/510 in l-inf (within epsilon where that is a whole number of 1/255), and where
    no attack succeeded it is the very test image. How many still fool the network then is in the returned line.

    Args:
        path: an npz file: ``x_adv``, ``label``, ``prediction`` (what ``x_adv`` is taken for), ``epsilon``, ``norm``.
        queries: images to logits (B, K), in eval mode.
        suite: that attacked them; gives epsilon, norm, device and batch size.
        x_adv: (N, C, H, W) float32; the clean image where no attack succeeded.
        images: the test images (N, H, W, C) uint8; labels and predictions: (N,).

    Returns:
        One line about the file.

    Raises:
        UserError: an image is outside the ball or [0, 1], or the file cannot be written.
    """
    x_adv = np.asarray(x_adv, np.float32)
    fooled_after_rounding = 0
    for start in range(0, len(x_adv), suite.batch_size):
        part = slice(start, start + suite.batch_size)
        _check_ball(x_adv[part], images[part], suite, start)
        rounded = torch.from_numpy(np.rint(255 * x_adv[part]) / np.float32(255)).to(suite.device)
        with torch.no_grad():
            taken_for = queries(rounded).argmax(1).cpu().numpy()
        fooled_after_rounding += int((taken_for != labels[part]).sum())
    arrays = {
        "x_adv": x_adv,
        "label": np.asarray(labels, np.int64),
        "prediction": np.asarray(predictions, np.int64),
        "epsilon": suite.epsilon,
        "norm": suite.norm,
    }
    write_atomically(path, lambda file: np.savez(file, **arrays))
    fooled = int((predictions != labels).sum())
    return (
        f"adversarial images: {path} ({len(labels)} images, {fooled} of them taken for another class; "
        f"{fooled_after_rounding} when rounded to 8 bits)"
    )


def _check_ball(x_adv: np.ndarray, images: np.ndarray, suite: Suite, first: int) -> None:
    """Raises: UserError: an image is further than epsilon + 1e-6 from its test image, or leaves [0, 1]."""
    flat = x_adv.astype(np.float64).reshape(len(x_adv), -1)
    difference = flat - images.transpose(0, 3, 1, 2).reshape(len(x_adv), -1) / 255
    distance = np.linalg.norm(difference, np.inf if suite.norm == "linf" else 2, axis=1)
    inside = (distance <= suite.epsilon + 1e-6) & (flat.min(1) >= 0) & (flat.max(1) <= 1)
    if not inside.all():
        raise UserError(
            f"the adversarial image of test image {first + int(np.argmin(inside))} is not within epsilon "
            f"{suite.epsilon:g} and [0, 1], so none are saved: autoattack.npz names the attack to report"
        )
