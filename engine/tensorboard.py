"""A run on TensorBoard: scalars, adversarial images, and hyper-parameters with the final figures."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attacks.pgd import cross_entropy_per_image, frozen, perturb, pgd20
from datasets.loader import to_float
from engine.config import TrainConfig
from models.accelerate import AcceleratedModel
from utils.errors import UserError

NUM_IMAGES = 8
FINAL = ("student_clean", "student_robust", "average_clean", "average_robust")


class Board:
    """Writes ``LOG_DIR/MARK/tensorboard``; after a resume the curves continue in the same place.

    Args:
        epoch: where training starts: what the folder shows from there on is of a run before, and hidden.

    Raises:
        UserError: TensorBoard is not installed.
    """

    def __init__(self, config: TrainConfig, folder: Path, epoch: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("--tensorboard needs the package tensorboard: pip install tensorboard") from error
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epoch)
        self._config, self._writer, self._last = config, writer, {}

    def epoch(self, metrics: dict[str, Any], network: AcceleratedModel, pixels: Tensor, labels: Tensor) -> None:
        """Add one epoch: every number of its entry, and a row of clean images above their PGD-20 ones.

        Args:
            metrics: the epoch's entry of metrics.jsonl.
            network: the student.
            pixels: (N, 3, H, W) uint8, labels: (N,): evaluation images, of which the first are shown.
        """
        self._last = metrics
        for name, value in metrics.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._writer.add_scalar(_tag(name), value, metrics["epoch"])
        x, y = to_float(pixels[:NUM_IMAGES]), labels[:NUM_IMAGES]
        spec, generator = pgd20(self._config.epsilon, self._config.norm), torch.Generator(x.device).manual_seed(0)
        with frozen(network.model):
            network.refresh()
            x_adv = perturb(network.attack_logits, x, y, cross_entropy_per_image, spec, generator, uses_clean=False)
        rows = torch.cat([torch.cat(list(images), dim=2) for images in (x, x_adv)], dim=1)
        self._writer.add_image("clean above adversarial", rows.cpu(), metrics["epoch"])

    def close(self) -> None:
        """Add the hyper-parameters with the last epoch's accuracies, and close the files."""
        settings = self._config.as_dict()
        plain = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in settings.items()}
        final = {f"final/{name}": self._last[name] for name in FINAL if name in self._last}
        if final:
            self._writer.add_hparams(plain, final, run_name=".")
        self._writer.close()


def _tag(name: str) -> str:
    """``student_robust`` -> ``accuracy/student_robust``: TensorBoard groups what has the same beginning."""
    if name.endswith(("_clean", "_robust")):
        return f"accuracy/{name}"
    return f"loss/{name.removeprefix('loss_')}" if name.startswith("loss") else f"run/{name}"
