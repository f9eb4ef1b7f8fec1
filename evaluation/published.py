"""Export weights as the evaluation program of the published LBGAT repository loads them."""

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from evaluation.target import LoadedModel
from models.weights import plain_state
from utils.errors import UserError
from utils.files import save_atomically


def require_wide_resnet(model: str) -> None:
    """Raises: UserError: the published program evaluates no such network."""
    if not re.fullmatch(r"wrn-\d+-\d+", model):
        raise UserError(f"--export published: the published program evaluates WideResNets only, not {model}")


def published_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a WideResNet under the names of the published class within DataParallel.

    Every name begins with ``module.``. The published class has a further group of blocks, ``sub_block1``, made like
    ``block1`` and never called in its forward pass; its tensors are those of ``block1`` here.
    """
    state = plain_state(model)
    unused = {f"sub_{name}": tensor.clone() for name, tensor in state.items() if name.startswith("block1.")}
    return {f"module.{name}": tensor for name, tensor in (state | unused).items()}


def export_published(folder: Path, name: str, target: LoadedModel, result: dict[str, Any]) -> str:
    """Write ``NAME.pt`` for ``auto_attack_eval.py`` of the published repository; return a line about it.

    Raises:
        UserError: the network is no WideResNet, or the file cannot be written.
    """
    require_wide_resnet(target.name)
    path = folder / f"{name}.pt"
    save_atomically(published_state(target.model), path)
    return f"published form: {path} ({target.name}, {target.num_classes} classes)"
