"""The whole state of a training run, and whether it is this run's."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from engine.config import TrainConfig
from models.weights import load_file
from utils.errors import UserError
from utils.options import flag

FORMAT = "lbgat-training-state-1"

# What may differ between a run and its continuation without making it another run.
MAY_CHANGE_ON_RESUME = {
    "epochs", "device", "mark", "data_dir", "extra_data", "log_dir", "checkpoint_dir", "resume", "max_minutes",
    "save_freq", "log_interval", "compile", "patience",
}  # fmt: skip


def _may_change_on_resume(config: TrainConfig) -> set[str]:
    """What may differ: the number of epochs only where the epochs before do not depend on it."""
    depends = config.schedule != "multistep" or config.epsilon_ramp != "none"
    return MAY_CHANGE_ON_RESUME - {"epochs"} if depends else MAY_CHANGE_ON_RESUME


def load_training_state(path: Path, config: TrainConfig, data: str, device: torch.device) -> dict[str, Any]:
    """The state of an interrupted run, after making sure that it is this run.

    Args:
        path: a ``last.pt``.
        config: the settings now; data: fingerprint of the data set now.

    Raises:
        UserError: no training state, or of a run with other settings or data; the sentence lists what differs.
    """
    try:
        state = load_file(path, device)
    except UserError as error:
        raise UserError(f"{error}, or train anew with --resume none") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT or "optimizer" not in state:
        raise UserError(f"{path} is no training state to go on from: pass a last.pt, or --resume none")
    # A setting that did not exist when the state was saved was as its default is now.
    then = {f.name: f.default for f in dataclasses.fields(config)} | state["config"]
    differ = [
        f"{flag(name)} {then[name]} then, {value} now"
        for name, value in dataclasses.asdict(config).items()
        if name not in _may_change_on_resume(config) and then[name] != value
    ]
    if state["data"] != data:
        differ.append("the images are not the same")
    if differ:
        raise UserError(
            f"{path} is of another run ({'; '.join(differ)}): use the same settings, another --mark, "
            "or --resume none to replace it"
        )
    return state
