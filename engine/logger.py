"""A run's log folder: train.log, metrics.jsonl, config.json, curves.png."""

import importlib.util
import json
import logging
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from engine.config import TrainConfig
from utils.errors import ensure_writable
from utils.files import write_atomically

CHOSEN_ON_TEST = (
    "best.pt is chosen on the TEST set, so its figures are optimistic: --val-size N chooses on held-out training "
    "images instead; last.pt involves no choice"
)
SECONDS_BETWEEN_PLOTS = 30.0


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, up to the first one that a kill or a full disk left unfinished."""
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


class RunLog:
    """Writes a training run's log folder.

    Args:
        folder: created if missing.
        first_epoch: the epoch that training starts or goes on with; lines of it and of later ones are dropped, for
            they are about to be measured again.
        resumed: whether to append to the log that is there.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, first_epoch: int, resumed: bool):
        self.folder = folder
        self.metrics: list[dict[str, Any]] = []
        self._next_plot = 0.0
        ensure_writable(folder, "--log-dir")
        path = folder / "metrics.jsonl"
        if resumed and path.exists():
            self.metrics = [line for line in _read_lines(path) if line["epoch"] < first_epoch]
        text = "".join(json.dumps(line) + "\n" for line in self.metrics)
        write_atomically(path, lambda file: file.write(text.encode()))
        file = logging.FileHandler(folder / "train.log", mode="a" if resumed else "w")
        self.logger = logging.getLogger(f"lbgat.{folder}")
        self.logger.setLevel(logging.INFO)
        self.logger.propagate = False
        for handler in list(self.logger.handlers):
            self.logger.removeHandler(handler)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self.logger.addHandler(file)
        self.logger.addHandler(logging.StreamHandler(sys.stdout))

    def info(self, message: str) -> None:
        self.logger.info(message)

    def write_config(self, config: dict[str, Any]) -> None:
        (self.folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def add_epoch(self, metrics: dict[str, Any]) -> None:
        """Append one epoch's line to metrics.jsonl."""
        self.metrics.append(metrics)
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(metrics) + "\n")

    def plot(self, final: bool) -> None:
        """Draw curves.png from all epochs so far, at most every half minute unless it is the last time."""
        if not self.metrics or (not final and time.monotonic() < self._next_plot):
            return
        if importlib.util.find_spec("matplotlib") is None:
            if final:
                self.info("curves.png is not drawn: matplotlib is not installed (pip install matplotlib)")
            return
        from engine.curves import plot_curves

        plot_curves(self.metrics, self.folder / "curves.png")
        self._next_plot = time.monotonic() + SECONDS_BETWEEN_PLOTS

    def close(self) -> None:
        for handler in list(self.logger.handlers):
            self.logger.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                handler.close()


def opening_line(config: TrainConfig, guided: bool, images: int, hardware: str) -> str:
    """What is trained on what, and how."""
    guide = f", guide {config.guide}" if guided else ""
    extras = [
        f"epsilon ramp to {config.epsilon:.4g}" if config.epsilon_ramp != "none" else "",
        f"weight perturbation {config.awp_gamma:g} from epoch {config.awp_start_epoch}" if config.awp_gamma else "",
        f"weights averaged each {config.average_every}" if config.average_every != "none" else "",
    ]
    return (
        f"{config.run_name}: {config.method}, student {config.student}{guide}, {config.dataset} "
        f"({images} training images), epsilon {config.epsilon:.4g} {config.norm}, "
        f"{''.join(f'{extra}, ' for extra in extras if extra)}{config.precision}, {hardware}"
    )


def epoch_line(m: dict[str, Any], epochs: int, seconds_left: float) -> str:
    """One epoch's line, from its line of metrics.jsonl."""
    terms = " ".join(f"{name} {value:.4f}" for name, value in m["terms"].items())
    guide = f", guide {m['guide_clean']:.2f}%" if "guide_clean" in m else ""
    average = ""
    if "average_clean" in m:
        average = f", average: clean {m['average_clean']:.2f}%, PGD-20 {m['average_robust']:.2f}%"
    return (
        f"epoch {m['epoch']}/{epochs}  lr {m['lr']:g}  loss {m['loss']:.4f} ({terms})  "
        f"{m['split']}: clean {m['student_clean']:.2f}%, PGD-20 {m['student_robust']:.2f}%{guide}{average}  "
        f"{m['images_per_second']:.0f} images/s  left {timedelta(seconds=round(seconds_left))}"
    )
