"""AutoAttack (Croce & Hein 2020) on chunks of images, at one or more epsilons: which attack broke which image.

The attacks are the authors' own (``evaluation/autoattack/suite.py``). Each is called once a chunk, on the images that
are still correct. Each attack seeds itself, so this gives the same verdict as one call of the front end per chunk, and
tells in addition which attack broke an image. For the same reason an evaluation can resume between two attacks.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.suite import LOGGER, Suite
from evaluation.results import AttackResult, PerImageResults
from utils.device import set_precision
from utils.distributed import ProcessGroup
from utils.errors import UserError


def prepare_model(model: nn.Module, suite: Suite, precision: str, compile: str, fold: bool = True) -> nn.Module:
    """Return what the suite attacks: an ``AttackedModel``, or with ``suite.plain`` the network itself in eval mode."""
    if suite.plain:
        set_precision(precision, torch.device(suite.device))
        return model.to(suite.device).eval().requires_grad_(False)
    return AttackedModel(model, suite.device, precision, compile, fold)


def attack_chunk(
    model: nn.Module, suite: Suite, x: Tensor, y: Tensor, done: int = 0, prediction: Tensor | None = None
) -> Iterator[AttackResult]:
    """Yield the clean pass, then every attack of the suite on the images still correct (on none if epsilon is 0).

    Args:
        model: images -> logits (B, K), in eval mode, its parameters not requiring gradients.
        x: (B, C, H, W) in [0, 1]; y: (B,); on the suite's device, B at most its batch size.
        done: how many of these steps an interrupted evaluation has finished.
        prediction: (B,) the predictions after them; None if there were none.

    Raises:
        UserError: the network's outputs are not finite.
    """
    front_end = suite.start(model)
    for name in ("clean", *suite.attacks)[done:]:
        started = time.perf_counter()
        if name == "clean":
            correct, x_adv, prediction = torch.ones_like(y, dtype=torch.bool), x, _predict(model, x)
        else:
            correct, x_adv, prediction = prediction == y, x.clone(), prediction.clone()
            if correct.any() and suite.epsilon > 0:
                x_adv[correct], prediction[correct] = suite.run(front_end, name, x[correct], y[correct])
        broken = correct & (prediction != y)
        yield AttackResult(
            name,
            prediction.cpu().numpy(),
            broken.cpu().numpy(),
            x_adv[broken].cpu().numpy(),
            time.perf_counter() - started,
        )


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    if not logits.isfinite().all():
        raise UserError("the network's outputs are not finite: its weights are damaged or its training diverged")
    return logits.max(1)[1]


def attack_images(
    model: nn.Module,
    suite: Suite,
    epsilons: tuple[float, ...],
    images: Callable[[slice], tuple[Tensor, Tensor]],
    results: PerImageResults,
    save: Callable[[], None] = lambda: None,
    group: ProcessGroup | None = None,
) -> None:
    """Run every attack on every chunk at every epsilon, as far as the results do not hold it, and add it to them.

    Args:
        model: images -> logits, as for ``attack_chunk``.
        epsilons: radii, in the order of the results.
        images: returns those of a slice, as (B, C, H, W) in [0, 1] and labels (B,) on the suite's device.
        results: empty, or those of an interrupted evaluation to resume.
        save: writes the results to disk; called after every step.
        group: the processes that share the chunks; rank 0 gets the warnings and results of ``results`` only.

    Raises:
        UserError: out of memory, a full disk, or outputs that are not finite.
    """
    group = group or ProcessGroup()
    if group.is_main and results.progress.size < group.size:
        idle = f"{group.size - results.progress.size} of {group.size} processes have nothing to do"
        print(f"notice: {idle}, there are too few chunks: pass a smaller --batch-size", file=sys.stderr)
    jobs, at_start = [tuple(job) for job in results.unfinished.tolist()], results.progress.copy()
    with _progress_bar(results, group) as bar:
        for epsilon, chunk in group.next_jobs(jobs):
            part, done = results.part(chunk), int(results.progress[epsilon, chunk])
            x, y = images(part)
            prediction = torch.from_numpy(results.adversarial_prediction[epsilon, part]).to(suite.device)
            at_epsilon = replace(suite, epsilon=epsilons[epsilon])
            try:
                for step in attack_chunk(model, at_epsilon, x, y, done, prediction):
                    group.check()  # before this process writes over the state of a newer run
                    results.add(epsilon, chunk, step)
                    save()
                    accuracies = _accuracies_so_far(results, epsilon, epsilons[epsilon])
                    left = seconds_left(results, at_start, group.size)
                    left_text = "" if left is None else f", left {timedelta(seconds=round(left))}"
                    bar.set_postfix_str(f"{accuracies} after {step.name}{left_text}", refresh=False)
                    bar.update(0 if step.name == "clean" else len(y))
            except torch.cuda.OutOfMemoryError as error:
                what = f"{suite.batch_size} images at once do not fit into the device's memory"
                raise UserError(f"{what}: pass a smaller --batch-size") from error
            LOGGER.info(f"finished images {part.start} to {part.stop - 1}; {accuracies} of all so far")


def _progress_bar(results: PerImageResults, group: ProcessGroup) -> tqdm:
    """Count images times attacks; of several processes rank 0 shows its own, and an equal share of what is left."""
    n, num_attacks = len(results.clean_prediction), results.seconds.shape[-1] - 1
    finished_attacks = np.repeat(results.progress - 1, results.batch_size, axis=1)[:, :n].clip(0)
    initial = int(finished_attacks.sum())
    total = initial + -(-(finished_attacks.size * num_attacks - initial) // group.size)
    return tqdm(
        total=total,
        initial=initial,
        disable=not group.is_main or sys.stderr is None,
        unit="img·attack",
        desc="AutoAttack",
        # without tqdm's own time left, which would be of images
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]",
    )


def seconds_left(results: PerImageResults, at_start: np.ndarray, num_processes: int) -> float | None:
    """Seconds until every attack on every chunk at every epsilon is done, from what each attack took so far.

    Args:
        results: as far as this process knows them.
        at_start: (E, chunks) the progress when it started; the processes share what was left then.

    Returns:
        None until each attack has run once.
    """
    step = np.arange(results.seconds.shape[-1])
    finished, open_then = step < results.progress[..., None], step >= at_start[..., None]
    count = finished.sum(1, keepdims=True)
    total = (results.seconds * finished).sum(1, keepdims=True)
    # At an epsilon where an attack has not run yet it takes its mean of all.
    count, total = (np.where(count, array, array.sum(0, keepdims=True)) for array in (count, total))
    if not count.all():
        return None
    share = (open_then * total / count).sum() / num_processes
    return max(0.0, float(share - (results.seconds * finished * open_then).sum()))


def _accuracies_so_far(results: PerImageResults, index: int, epsilon: float) -> str:
    """The accuracies at one epsilon of the images that this process has predictions of."""
    seen = results.adversarial_prediction[index] >= 0
    broken_by = results.broken_by[index][seen]
    clean, robust = 100 * np.mean(broken_by != "clean"), 100 * np.mean(broken_by == "")
    return f"epsilon {epsilon:.4g}: clean {clean:.2f}%, robust {robust:.2f}%"
