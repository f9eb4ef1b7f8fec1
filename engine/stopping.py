"""Stop a training before its last epoch: signals, a time limit, patience."""

import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

from engine.train_state import Checkpoints, Progress

SECONDS_BETWEEN_SAVES = 600.0  # within an epoch; a kill -9 costs at most this much


class Stopped(Exception):
    """Training stopped before its end, on a signal or at --max-minutes; the state is saved."""


class StopSignal:
    """Turns Ctrl-C, SIGTERM and --max-minutes into a stop after the present batch, with a saved state.

    As a context it handles the two signals. A second Ctrl-C stops at once, without saving.

    Args:
        steps: of an epoch.
        log: called with the line about a stop, after saving.
    """

    def __init__(self, checkpoints: Checkpoints, steps: int, log: Callable[[str], None]):
        self.max_minutes, self.checkpoints = checkpoints.config.max_minutes, checkpoints
        self.steps, self.log = steps, log
        self.reason = ""
        self._began = time.monotonic()
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.reason and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def check(self) -> None:
        """Call after every batch: save every ten minutes; save and stop after a signal or at --max-minutes.

        Raises:
            Stopped: after saving last.pt.
            UserError: last.pt cannot be written.
        """
        minutes = (time.monotonic() - self._began) / 60
        if self.max_minutes and minutes >= self.max_minutes and not self.reason:
            self.reason = f"--max-minutes {self.max_minutes:g}"
        if self.reason:
            self.checkpoints.save_last()
            at = f"epoch {self.checkpoints.progress.epoch}, step {self.checkpoints.progress.step}/{self.steps}"
            self.log(f"stopped by {self.reason} at {at}; run the same command again to continue")
            raise Stopped(self.reason)
        if time.monotonic() - self.checkpoints.saved_at > SECONDS_BETWEEN_SAVES:
            self.checkpoints.save_last()


def out_of_patience(patience: int, progress: Progress) -> bool:
    """Return whether so many epochs have passed since the best one: robust overfitting (Rice et al. 2020)."""
    best = progress.best.get("epoch", progress.epoch - 1)
    return patience > 0 and not progress.step and progress.epoch - 1 - best >= patience
