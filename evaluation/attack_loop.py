"""AutoAttack (Croce & Hein 2020) in chunks: which attack broke which image, how long each took, and where to go on.

The attacks are the authors' own (``engine/suite.py``). Each is called once for a chunk, on the images that the attacks
before left robust. Each attack seeds itself, so this gives the same verdict as one call of the front end per chunk, and
tells in addition which attack broke an image. For the same reason a chunk may be left and gone on with between attacks.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from datasets import Dataset
from datasets.loader import to_device, to_float
from evaluation.autoattack.suite import LOGGER, Suite
from evaluation.results import AttackResult, PerImageResults
from utils.distributed import Team
from utils.errors import UserError


def attack_chunk(
    queries: nn.Module, suite: Suite, x: Tensor, y: Tensor, done: int = 0, prediction: Tensor | None = None
) -> Iterator[AttackResult]:
    """The clean pass, then every attack of the suite on what the ones before left robust (none if epsilon is 0).

    Args:
        queries: images -> logits (B, K), in eval mode, its parameters not requiring gradients.
        x: (B, C, H, W) in [0, 1]; y: (B,); on the suite's device, B at most its batch size.
        done: how many of these steps an interrupted evaluation has finished.
        prediction: (B,) what each image was taken for after them; None if there were none.

    Raises:
        UserError: the network's outputs are not finite.
    """
    front_end = suite.start(queries)
    for name in ("clean", *suite.attacks)[done:]:
        started = time.perf_counter()
        if name == "clean":
            right, x_adv, prediction = torch.ones_like(y, dtype=torch.bool), x, _classify(queries, x)
        else:
            right, x_adv, prediction = prediction == y, x.clone(), prediction.clone()
            if right.any() and suite.epsilon > 0:
                x_adv[right], prediction[right] = suite.run(front_end, name, x[right], y[right])
        broken = right & (prediction != y)
        yield AttackResult(
            name,
            prediction.cpu().numpy(),
            broken.cpu().numpy(),
            x_adv[broken].cpu().numpy(),
            time.perf_counter() - started,
        )


def _classify(queries: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = queries(x)
    if not logits.isfinite().all():
        raise UserError("the network's outputs are not finite: its weights are damaged or its training diverged")
    return logits.max(1)[1]


def evaluate(
    queries: nn.Module,
    suite: Suite,
    epsilons: tuple[float, ...],
    data: Dataset,
    outcomes: PerImageResults,
    save: Callable[[], None],
    team: Team,
) -> None:
    """Attack all images at every epsilon, chunk by chunk, and fill the outcomes in.

    Args:
        queries: images -> logits, as for ``attack_chunk``.
        epsilons: radii in [0, 1], in the order of the outcomes.
        data: its test images are attacked.
        outcomes: empty, or what an interrupted evaluation left, to go on with.
        save: keeps the outcomes on disk; called after every step.
        team: the processes that share the jobs; rank 0 comes back with the outcomes of all.

    Raises:
        UserError: out of memory, a full disk, or outputs that are not finite.
    """
    if team.rank == 0 and outcomes.progress.size < team.size:
        idle = f"{team.size - outcomes.progress.size} of {team.size} processes have nothing to do"
        print(f"notice: {idle}, there are too few chunks: pass a smaller --batch-size", file=sys.stderr)
    jobs = [tuple(job) for job in outcomes.unfinished.tolist()]
    with tqdm(disable=team.rank > 0, unit="img·attack", desc="AutoAttack") as bar:
        if team.rank == 0:
            _restore(bar, outcomes, epsilons, team)
        for epsilon, chunk in team.share(jobs):
            part, done = outcomes.part(chunk), int(outcomes.progress[epsilon, chunk])
            pixels, y = to_device(data.x_test[part], data.y_test[part], suite.device)
            prediction = torch.from_numpy(outcomes.adversarial_prediction[epsilon, part]).to(suite.device)
            at_epsilon = replace(suite, epsilon=epsilons[epsilon])
            try:
                for step in attack_chunk(queries, at_epsilon, to_float(pixels), y, done, prediction):
                    # First: it ends a process whose torchrun is gone, before it writes over its successor's state.
                    so_far = _advance(bar, team, at_epsilon.epsilon, step)
                    outcomes.add(epsilon, chunk, step)
                    save()
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(
                    f"--batch-size {suite.batch_size} does not fit into the device's memory: pass less"
                ) from error
            LOGGER.info(f"images {part.start} to {part.stop - 1} are finished; of all so far, {so_far}")
        told = set(outcomes.warnings)
        for theirs in team.gather(outcomes)[1:]:
            outcomes.merge(theirs)
        bar.update(team.add("img·attack", 0) - bar.n)
    for message in sorted(set(outcomes.warnings) - told):
        LOGGER.warning(message)
    if team.rank == 0:
        for epsilon in range(len(epsilons)):
            suite.warn_about_square(outcomes.accuracies(suite.attacks, epsilon))


def _restore(bar: tqdm, outcomes: PerImageResults, epsilons: tuple[float, ...], team: Team) -> None:
    """Let the bar begin where an interrupted evaluation ended."""
    n = len(outcomes.clean_prediction)
    steps = np.repeat(outcomes.progress, outcomes.batch_size, axis=1)[:, :n]
    bar.total = len(epsilons) * n * (outcomes.seconds.shape[-1] - 1)
    bar.initial = bar.n = team.add("img·attack", (steps - 1).clip(0).sum())
    for epsilon, met, broken_by in zip(epsilons, steps > 0, outcomes.broken_by, strict=True):
        team.add(f"met at {epsilon}", met.sum())
        team.add(f"right at {epsilon}", (met & (broken_by != "clean")).sum())
        team.add(f"robust at {epsilon}", (met & (broken_by == "")).sum())
    bar.refresh()


def _advance(bar: tqdm, team: Team, epsilon: float, step: AttackResult) -> str:
    """Count a step; the accuracies at this epsilon of all images so far, under the attacks that each has met."""
    n, broken, clean = len(step.broken), step.broken.sum(), step.name == "clean"
    met = team.add(f"met at {epsilon}", n if clean else 0)
    right = team.add(f"right at {epsilon}", n - broken if clean else 0)
    robust = team.add(f"robust at {epsilon}", n - broken if clean else -broken)
    attacked = team.add("img·attack", 0 if clean else n)
    percent = 100 / max(met, 1)  # rank 0 may not have told yet of what was met before an interruption
    so_far = f"epsilon {epsilon:.4g}: clean {percent * right:.2f}%, robust {percent * robust:.2f}% after {step.name}"
    bar.set_postfix_str(so_far, refresh=False)
    bar.update(attacked - bar.n)
    return so_far
