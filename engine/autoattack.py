"""AutoAttack (Croce & Hein 2020) in chunks: which attack broke which image, how long each took, and where to go on.

The attacks are the authors' own (``engine/suite.py``). Each is called once for a chunk, on the images that the attacks
before left robust. Each attack seeds itself, so this gives the same verdict as one call of the front end per chunk, and
tells in addition which attack broke an image.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets.loader import to_device, to_float
from engine.errors import UserError
from engine.outcomes import Outcomes
from engine.suite import LOGGER, Suite


def attack_chunk(
    model: nn.Module,
    suite: Suite,
    x: Tensor,
    y: Tensor,
    on_attack: Callable[[str, np.ndarray], None] = lambda name, broken_by: None,
) -> dict[str, np.ndarray]:
    """Every attack of the suite on what the ones before left robust.

    Args:
        model: in eval mode, its parameters not requiring gradients.
        x: (B, C, H, W) in [0, 1]; y: (B,); on the suite's device, B at most its batch size.
        on_attack: called after the clean pass and each attack with its name and ``broken_by`` so far.

    Returns:
        ``x_adv`` (the clean image where robust) and the arrays of ``Outcomes`` for these images.

    Raises:
        UserError: the network's outputs are not finite.
    """
    started = time.perf_counter()
    with torch.no_grad():
        logits = model(x)
    if not logits.isfinite().all():
        raise UserError("the network's outputs are not finite: its weights are damaged or its training diverged")
    clean_prediction = logits.max(1)[1]
    adversarial_prediction, x_adv = clean_prediction.clone(), x.clone()
    broken_by = np.where((clean_prediction == y).cpu().numpy(), "", "clean").astype("U16")
    seconds = [time.perf_counter() - started]
    on_attack("clean", broken_by)
    front_end = suite.start(model)
    for attack in suite.attacks:
        started = time.perf_counter()
        left = (adversarial_prediction == y).nonzero().squeeze(1)
        if len(left):
            x_adv[left], adversarial_prediction[left] = suite.run(front_end, attack, x[left], y[left])
        broken_by[(adversarial_prediction != y).cpu().numpy() & (broken_by == "")] = attack
        seconds.append(time.perf_counter() - started)
        on_attack(attack, broken_by)
    return {
        "clean_prediction": clean_prediction.cpu().numpy(),
        "adversarial_prediction": adversarial_prediction.cpu().numpy(),
        "broken_by": broken_by,
        "seconds": np.array(seconds),
        "x_adv": x_adv.cpu().numpy(),
    }


def evaluate(
    model: nn.Module,
    suite: Suite,
    images: np.ndarray,
    labels: np.ndarray,
    state: Path,
    fingerprint: dict[str, Any],
    outcomes: Outcomes | None = None,
) -> Outcomes:
    """Attack all images chunk by chunk.

    Args:
        images: (N, H, W, 3) uint8; labels: (N,).
        state: written after every chunk; the caller deletes it once the results are safe.
        fingerprint: of everything that the verdicts depend on.
        outcomes: what an interrupted evaluation left, to go on with.

    Raises:
        UserError: out of memory, a full disk, or outputs that are not finite.
    """
    n, size = len(images), suite.batch_size
    if outcomes is None:
        height, width, channels = images.shape[1:]
        outcomes = Outcomes.empty(n, -(-n // size), len(suite.attacks), (channels, height, width))
    else:
        LOGGER.info(f"going on with {state}: {outcomes.finished.sum()} of {len(outcomes.finished)} chunks are finished")
    model.eval().requires_grad_(False)
    steps = len(suite.attacks)
    restored = int(np.repeat(outcomes.finished, size)[:n].sum()) * steps
    with tqdm(total=n * steps, initial=restored, unit="img·attack", desc="AutoAttack") as bar:
        for chunk in np.flatnonzero(~outcomes.finished):
            part = slice(chunk * size, min((chunk + 1) * size, n))
            before = outcomes.broken_by[np.repeat(outcomes.finished, size)[:n]]
            pixels, y = to_device(images[part], labels[part], suite.device)
            try:
                result = attack_chunk(model, suite, to_float(pixels), y, partial(_advance, bar, before))
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(f"--batch-size {size} does not fit into the device's memory: pass less") from error
            outcomes.add(chunk, part, result)
            outcomes.save(state, fingerprint)
            LOGGER.info(f"images {part.start} to {part.stop - 1} of {n}: {bar.postfix}")
    suite.warn_about_square(outcomes.accuracies(suite.attacks))
    return outcomes


def _advance(bar: tqdm, before: np.ndarray, name: str, broken_by: np.ndarray) -> None:
    """Show the accuracies of all images so far, those of the running chunk under the attacks that it has met."""
    bar.update(0 if name == "clean" else len(broken_by))
    seen = np.concatenate([before, broken_by])
    clean, robust = 100 * np.mean(seen != "clean"), 100 * np.mean(seen == "")
    bar.set_postfix_str(f"clean {clean:.2f}%, robust {robust:.2f}% after {name}")
