"""Give all processes the state of process 0, so that they start from the same weights wherever those came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from utils.distributed import ProcessGroup

if TYPE_CHECKING:
    from engine.train_state import Checkpoints


def share_state(run: Checkpoints, group: ProcessGroup) -> None:
    """Replace weights, statistics, momentum, average, the step's state and the progress by those of process 0. They
    travel as tensors and JSON.

    Raises:
        UserError: another process has ended.
    """
    progress, states = run.progress, run.optimizer.state
    parameters = [p for of_group in run.optimizer.param_groups for p in of_group["params"]]
    step, device = run.step.state_dict(), parameters[0].device
    facts = group.broadcast({
        "progress": [progress.epoch, progress.step, progress.seconds, progress.best, progress.train_robust],
        "sums": {name: value.item() for name, value in progress.sums.items()},
        "momentum": any(states.get(p, {}).get("momentum_buffer") is not None for p in parameters),
        "updates": run.average.updates if run.average else 0,
        "step": {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in step.items()},
        "latest": str(run.latest or ""),
        "saved_with": run.saved_with,
    })  # fmt: skip
    progress.epoch, progress.step, progress.seconds, progress.best, progress.train_robust = facts["progress"]
    progress.sums = {n: torch.tensor(v, dtype=torch.float64, device=device) for n, v in facts["sums"].items()}
    run.latest, run.saved_with = Path(facts["latest"]) if facts["latest"] else None, facts["saved_with"]
    modules = [run.student, run.guide, run.objective]
    if run.average:
        run.average.updates = facts["updates"]
        modules.append(run.average.model)
    tensors = [tensor for module in modules if module is not None for tensor in module.state_dict().values()]
    if facts["momentum"]:
        for p in parameters:
            if states[p].get("momentum_buffer") is None:
                states[p]["momentum_buffer"] = torch.zeros_like(p)
        tensors += [states[p]["momentum_buffer"] for p in parameters]
    if not group.is_main:
        step = {
            n: torch.zeros(shape, dtype=getattr(torch, t), device=device) for n, (t, shape) in facts["step"].items()
        }
    group.broadcast_(*tensors, *step.values())
    if not group.is_main:
        run.step.load_state_dict(step)
