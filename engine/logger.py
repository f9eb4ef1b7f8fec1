"""A run's log folder: train.log, metrics.jsonl, config.json, curves.png."""

import importlib.util
import json
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.config import TrainConfig
from engine.data import TrainingData
from engine.log_lines import DECAYING, describe_run, epoch_line
from engine.tensorboard import Board
from engine.train_state import Checkpoints, Progress
from losses.base import Objective
from models.accelerate import AcceleratedModel
from utils.device import slow_precision
from utils.errors import UserError, ensure_writable, flush_output
from utils.files import add_checksum, read_metrics, set_aside, write_atomically
from utils.options import format_epsilon

CHOSEN_ON_TEST = (
    "best.pt is chosen on the TEST set, so its figures are optimistic: --val-size N chooses on held-out training "
    "images instead; last.pt involves no choice"
)
SECONDS_BETWEEN_PLOTS = 30.0


class Logger:
    """Writes a training run's log folder; as a context it closes its files.

    Args:
        progress: where training starts; entries of metrics.jsonl from its epoch on are dropped, since they are measured
            again.
        latest: the file that it resumes from, if any: where the log folder has no entries, those of the log of its
            folder's name are taken over.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, config: TrainConfig, progress: Progress, latest: Path | None = None):
        self.config, self.folder = config, config.log_folder
        self.metrics: list[dict[str, Any]] = []
        self._next_plot = 0.0
        ensure_writable(self.folder, "--log-dir")
        path = self.folder / "metrics.jsonl"
        own = path.is_file() and path.stat().st_size > 0
        earlier = path if own or latest is None else Path(config.log_dir) / latest.parent.name / path.name
        found = progress.started and earlier.is_file()
        if found:
            self.metrics = [entry for entry in read_metrics(earlier) if entry["epoch"] < progress.epoch]
        gaps = sorted(set(range(1, progress.epoch)) - {entry["epoch"] for entry in self.metrics})
        kept = set_aside(self.folder, path.name) if not progress.started else None
        text = "".join(json.dumps(add_checksum(entry)) + "\n" for entry in self.metrics)
        write_atomically(path, lambda file: file.write(text.encode()))
        file = _LogFile(self.folder / "train.log", mode="a" if progress.started else "w", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        self._logger = logging.getLogger(f"lbgat.{self.folder}")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        self._close_handlers()
        self._logger.addHandler(file)
        self._logger.addHandler(_Output(sys.stdout))
        if kept:
            self.info(f"notice: the log of an earlier run was here and is now in {kept}")
        self._board = Board(config, self.folder, progress.epoch) if config.tensorboard else None
        if gaps:
            lines = ", ".join(map(str, gaps[:8])) + " ..." * (len(gaps) > 8)
            what = "was damaged" if found else "is not there"
            self.info(f"warning: {earlier} {what}: the entries of these epochs are missing from now on: {lines}")

    def __enter__(self) -> "Logger":
        return self

    def __exit__(self, *_: object) -> None:
        self._close_handlers()
        if self._board:
            self._board.close()

    def _close_handlers(self) -> None:
        for handler in list(self._logger.handlers):
            self._logger.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                with suppress(OSError):  # a full disk, which its last line has reported
                    handler.close()

    def info(self, message: str) -> None:
        self._logger.info(message)

    def opening(self, settings: dict[str, Any], objective: Objective, guided: bool, data: TrainingData) -> None:
        """Write config.json, and log what is trained and what limits the figures.

        Args:
            settings: all of the configuration, and where it runs.
            guided: whether there is a guide.
        """
        text = json.dumps(settings, indent=2) + "\n"
        write_atomically(self.folder / "config.json", lambda file: file.write(text.encode()))
        config = self.config
        self.info(f"{config.run_name}: {describe_run(config, guided, len(data.loader.images))}; {settings['hardware']}")
        if config.precision == "tf32" and "CPU" in settings["hardware"]:
            self.info("tf32 changes nothing on a CPU")
        if "CPU" in settings["hardware"] and (sentence := slow_precision(config.precision, torch.device("cpu"))):
            self.info(f"warning: {sentence}")
        last = config.epochs + (config.schedule == "piecewise")  # which decays within the epoch before
        late = ", ".join(f"{epoch:g}" for epoch in config.decay_epochs if epoch > last)
        if config.schedule in DECAYING and late:
            self.info(
                f"warning: the learning rate does not decay at {late}, after the last epoch "
                f"{config.epochs}: --decay-epochs 3/4,9/10 sets the decays as parts of the run"
            )
        if config.awp_gamma and config.awp_start_epoch > config.epochs:
            self.info(
                f"warning: there is no weight perturbation before epoch {config.awp_start_epoch}, after the last epoch "
                f"{config.epochs}: set --awp-start-epoch"
            )
        steps = config.num_steps + (objective.first_inner is not None)
        reach = steps * (config.step_ratio * config.epsilon if config.step_ratio else config.step_size)
        attacks = "adv" in objective.passes and objective.step == "standard" and objective.start != "uniform"
        if attacks and reach < config.epsilon:
            self.info(
                f"warning: {steps} attack steps reach {reach:.3g} at most, less than epsilon "
                f"{format_epsilon(config.epsilon)}: set --step-size or --step-ratio"
            )
        if data.notice:
            self.info(f"warning: {data.notice}")
        if data.eval_split == "test":
            self.info(CHOSEN_ON_TEST)

    def resumed(self, checkpoints: Checkpoints, steps: int) -> None:
        """Log where training resumes and from which file, and which processes, threads or code differ from then."""
        progress, then = checkpoints.progress, checkpoints.saved_with or {}
        self.info(f"resuming at epoch {progress.epoch}, step {progress.step}/{steps}, from {checkpoints.latest}")
        for what, now in (("processes", checkpoints.group.size), ("threads", torch.get_num_threads())):
            if then.get(what, now) != now:
                name = "CPU threads" if what == "threads" else what
                self.info(f"warning: saved with {then[what]} {name}, now {now}: the weights may differ by rounding")
        if then.get("code") and checkpoints.code not in ("", then["code"]):
            self.info("warning: the code of the method or of its step has changed since this state was saved")

    def epoch(self, metrics: dict[str, Any], seconds_left: float) -> None:
        """Append one epoch to metrics.jsonl and the log, and draw the curves now and then."""
        self.metrics.append(metrics)
        path = self.folder / "metrics.jsonl"
        try:
            with open(path, "a") as file:
                file.write(json.dumps(add_checksum(metrics)) + "\n")
        except OSError as error:
            raise UserError(f"could not write {path} ({error}): free space or choose another folder") from error
        self.info(epoch_line(metrics, self.config.epochs, seconds_left))

    def board(self, metrics: dict[str, Any], network: AcceleratedModel, pixels: Tensor, labels: Tensor) -> None:
        """Add one epoch to TensorBoard, if the run has one; see ``Board.epoch``."""
        if self._board:
            self._board.epoch(metrics, network, pixels, labels)

    def plot(self, final: bool = False) -> None:
        """Draw curves.png from all epochs so far, at most every half minute unless it is the last time.

        If it cannot be drawn, the log says why and training continues.
        """
        if not self.metrics or (not final and time.monotonic() < self._next_plot):
            return
        if importlib.util.find_spec("matplotlib") is None:
            if final:
                self.info("curves.png is not drawn: matplotlib is not installed (pip install matplotlib)")
            return
        self._next_plot = time.monotonic() + SECONDS_BETWEEN_PLOTS
        try:
            from engine.curves import plot_curves

            plot_curves(self.metrics, self.folder / "curves.png")
        except Exception as error:  # matplotlib raises nearly anything on odd figures and full disks
            self.info(f"curves.png is not drawn ({type(error).__name__}: {error})")


class NoLog:
    """In the place of a Logger where another process writes the log: whatever it is told, it does nothing."""

    def __enter__(self) -> "NoLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Pace:
    """Estimates the time left, from the steps and evaluations of this process.

    Args:
        steps: of an epoch.
    """

    def __init__(self, epochs: int, steps: int):
        self.epochs, self.steps, self.began = epochs, steps, time.monotonic()
        self.done, self.seconds, self.epochs_done = 0, 0.0, 0

    def add(self, seconds: float) -> None:
        """Count a step."""
        self.done, self.seconds = self.done + 1, self.seconds + seconds

    def epoch_done(self, epoch: int) -> float:
        """Count an epoch, after its evaluation; return the estimated seconds left."""
        self.epochs_done += 1
        other = (time.monotonic() - self.began - self.seconds) / self.epochs_done
        step = self.seconds / self.done if self.done else 0.0
        return (self.epochs - epoch) * (self.steps * step + other)


class _LogFile(logging.FileHandler):
    """train.log; a full disk is an error, in one sentence."""

    def __init__(self, path: Path, **options: Any):
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is there and is no regular file")
            super().__init__(path, errors="backslashreplace", **options)
        except OSError as error:
            raise self._failed(path, error) from error

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        raise self._failed(self.baseFilename, error) from error

    @staticmethod
    def _failed(path: str | Path, error: BaseException | None) -> UserError:
        return UserError(f"could not write {path} ({error}): free space or choose another folder")


class _Output(logging.StreamHandler):
    """Standard output; once it cannot be written, as after ``| head -1``, training continues without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        flush_output()
