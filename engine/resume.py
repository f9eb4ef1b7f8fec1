"""Read the state of an interrupted run, and check that it is undamaged and of this run."""

import dataclasses
import hashlib
import json
import math
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config import TrainConfig
from losses import find_method
from models.custom import is_custom, short_name
from models.weights import load_file
from utils.errors import UserError, first_line
from utils.files import read_json
from utils.options import flag

FORMAT = "lbgat-training-state-1"
WEIGHTS = ("best.pt", "student-epoch*.pt", "average-epoch*.pt")

# What may differ between a run and its continuation without making it another run.
MAY_CHANGE_ON_RESUME = {
    "epochs", "device", "mark", "data_dir", "extra_data", "log_dir", "checkpoint_dir", "resume", "max_minutes",
    "save_freq", "log_interval", "compile", "patience", "tensorboard",
}  # fmt: skip


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The SGD's state to save. A parameter that has had no gradient, and so no momentum, gets one of 0, which leaves
    every later update as it is: the buffers are all there, or none is."""
    saved = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(state.get("momentum_buffer") is not None for state in saved["state"].values()):
        for i, p in enumerate(parameters):
            saved["state"].setdefault(i, {"momentum_buffer": torch.zeros_like(p)})
    return saved


def momentum_buffers(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor | None]]:
    """The momentum buffers of a saved SGD state, checked against the parameters: a fused optimizer checks nothing.

    Raises:
        ValueError: a buffer of another shape or type, buffers for only a part of the parameters, or a state that is
            not SGD's: for another optimizer, this function is to be extended.
    """
    if unknown := {key for state in saved["state"].values() for key in state} - {"momentum_buffer"}:
        raise ValueError(f"{sorted(unknown)[0]} is no state of SGD")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    buffers = {i: state.get("momentum_buffer") for i, state in saved["state"].items()}
    present = {i for i, buffer in buffers.items() if buffer is not None}
    if present and present != set(range(len(parameters))):
        raise ValueError("momentum buffers of some parameters are missing")
    for i in present:
        buffer, p = buffers[i], parameters[i]
        if (buffer.shape, buffer.dtype, buffer.layout) != (p.shape, p.dtype, p.layout):
            raise ValueError(f"momentum buffer {i} is {buffer.dtype} {tuple(buffer.shape)}")
    return {i: {"momentum_buffer": buffers[i]} for i in present}


def damaged(path: Path, error: Exception) -> UserError:
    reason = first_line(error)
    return UserError(f"{path} is damaged ({reason[:80]}): copy it again, or train anew with --resume none")


def load_training_state(path: Path, config: TrainConfig, data: str, device: torch.device) -> dict[str, Any]:
    """Read a ``last.pt`` and check that it is of this run.

    Args:
        config: the settings now; data: fingerprint of the data set now.

    Raises:
        UserError: not a training state, or of a run with other settings or data; the sentence lists what differs.
    """
    try:
        state = load_file(path, device)
    except UserError as error:
        raise UserError(f"{error}, or train anew with --resume none") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "optimizer" not in state:
        raise UserError(f"{path} is not a resumable training checkpoint: pass a last.pt, or --resume none")
    if not isinstance(state.get("config"), dict) or not isinstance(state.get("data"), str):
        raise damaged(path, ValueError("its settings are missing"))
    try:
        differ = differences(state["config"], config, may_change(config))
    except (ValueError, TypeError, RecursionError) as error:  # no plain values
        raise damaged(path, error) from error
    if state["data"] != data:
        differ.append("the images are not the same")
    if differ:
        raise UserError(
            f"{path} is of another run ({'; '.join(differ)}): use the same settings, another --mark, "
            "or --resume none to replace it"
        )
    return state


def differences(then: dict[str, Any], config: TrainConfig, may_change: set[str]) -> list[str]:
    """What differs between the settings of a run then and now but for those that may change, a phrase each.

    A setting that did not exist then was as its default is now.

    Raises:
        ValueError, TypeError, RecursionError: a setting then is no plain value.
    """
    defaults = {f.name: f.default for f in dataclasses.fields(config)} | find_method(config.method).complete({})
    now, then = config.as_dict(), defaults | then
    now, then = (json.loads(json.dumps({name: values.get(name) for name in now})) for values in (now, then))
    same = {name for name, value in _without_paths(now).items() if _without_paths(then).get(name) == value}
    return [
        "the source file of a network"
        if name == "sources"
        else f"{flag(name)} {_written(then.get(name))[:40]} then, {_written(value)} now"
        for name, value in now.items()
        if name not in may_change | same
    ]


def _without_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """A user's network is the same one in another folder."""
    names = {name: settings.get(name) for name in ("student", "guide")}
    short = {name: short_name(text) for name, text in names.items() if isinstance(text, str) and is_custom(text)}
    hashes = settings.get("sources")
    return settings | short | ({"sources": sorted(hashes.values())} if isinstance(hashes, dict) else {})


def check_folders(checkpoints: Path, logs: Path, config: TrainConfig, started: bool) -> None:
    """Make sure that this run neither replaces another one's weights or log nor continues them.

    Args:
        checkpoints, logs: the run's folders.
        started: whether it resumes; a fresh start may replace what a run of the same settings left.

    Raises:
        UserError: the folders hold another run, and ``--resume`` is not ``none``.
    """
    if config.resume == "none":
        return
    found: dict[Path, Any] = {}
    kept = [path for name in WEIGHTS for path in checkpoints.glob(name)]
    if kept and not (checkpoints / "last.pt").exists():
        best = checkpoints / "best.pt"
        content = load_file(best) if best.is_file() else None
        found[checkpoints] = content.get("config") if isinstance(content, dict) else None
    if (logs / "metrics.jsonl").is_file() and (logs / "metrics.jsonl").stat().st_size:
        with suppress(OSError, ValueError, RecursionError):
            found[logs] = read_json(logs / "config.json")
    allowed = may_change(config) - (set() if started else {"checkpoint_dir", "epochs"})
    hint = "remove that folder" if started else "--resume none to replace it"
    for folder, then in found.items():
        try:
            differ = differences(then, config, allowed)
        except (ValueError, TypeError, RecursionError):
            differ = ["it does not say which"]
        if differ:
            raise UserError(f"{folder} holds another run ({'; '.join(differ)}): pass another --mark, or {hint}")


def check_progress(state: dict[str, Any], steps_per_epoch: int) -> None:
    """Raises: ValueError, TypeError, OverflowError and the like: the counts and figures in a last.pt are no such."""
    epoch, step, seconds, best = (state[name] for name in ("epoch", "steps_done", "seconds", "best"))
    if type(epoch) is not int or type(step) is not int or epoch < 1 or not 0 <= step <= steps_per_epoch:
        raise ValueError(f"epoch {epoch}, step {step}")
    if not 0 <= float(seconds) < math.inf or not all(v.dim() == 0 for v in state["sums"].values()):
        raise ValueError("seconds or sums")
    figures = [value for name, value in best.items() if name.endswith(("_clean", "_robust"))]
    if best and not (type(best["epoch"]) is int and isinstance(best["chosen_by"], str) and best["chosen_by"] in best):
        raise ValueError("best")
    if not all(isinstance(value, (int, float)) for value in figures):
        raise ValueError("the figures of best")


def code_hash(*classes: type) -> str:
    """SHA-256 of the files of classes and of those that they inherit from, but PyTorch's; empty if one is unknown."""
    modules = {c.__module__ for cls in classes for c in cls.__mro__} - {"builtins", "typing"}
    names = sorted(name for name in modules if not name.startswith("torch."))
    try:
        content = [Path(sys.modules[name].__file__).read_bytes() for name in names]
    except (OSError, AttributeError, TypeError, LookupError):  # as of a class that was typed in
        return ""
    return hashlib.sha256(b"".join(content)).hexdigest()


def _written(value: Any) -> str:
    """As a flag takes it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def may_change(config: TrainConfig) -> set[str]:
    """What may differ: the number of epochs only where the epochs before do not depend on it."""
    depends = config.schedule != "multistep" or config.epsilon_ramp != "none" or config.average_warmup > 0
    return MAY_CHANGE_ON_RESUME - {"epochs"} if depends else MAY_CHANGE_ON_RESUME
