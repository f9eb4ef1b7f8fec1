"""Stop a training before its last epoch: signals, a time limit, patience."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType

import torch

from engine.train_state import Checkpoints, Progress
from utils.distributed import ProcessGroup

SECONDS_BETWEEN_SAVES = 600.0  # within an epoch; a kill -9 costs at most this much
SECONDS_BETWEEN_CHECKS = 1.0
SAVE, MAX_MINUTES = "save", "--max-minutes"
REASONS = (SAVE, MAX_MINUTES, "SIGINT", "SIGTERM")  # of several at a time the last one counts


class Stopped(Exception):
    """Training stopped before its end, on a signal or at --max-minutes; the state is saved."""


class StopSignal:
    """Turns Ctrl-C, SIGTERM and --max-minutes into a stop after the present batch, with a saved state.

    As a context it handles the two signals. A second Ctrl-C stops at once, without saving. Processes stop together,
    whichever of them got the signal.

    Args:
        steps: of an epoch.
        log: called with the line about a stop, after saving.
    """

    def __init__(self, checkpoints: Checkpoints, steps: int, log: Callable[[str], None], group: ProcessGroup):
        self.max_minutes, self.checkpoints = checkpoints.config.max_minutes, checkpoints
        self.steps, self.log, self.group = steps, log, group
        self.reason = ""
        self._began = self._next_check = time.monotonic()
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # only there can they be handled
            self._handlers = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Of one Ctrl-C several processes get two, one of them through torchrun.
        if self.reason and number == signal.SIGINT and self.group.size == 1:
            raise KeyboardInterrupt(number)
        self.reason = signal.Signals(number).name

    def check(self) -> None:
        """Call after every batch, in all processes: save every ten minutes; save and stop after a signal or at
        --max-minutes.

        Raises:
            Stopped: after saving last.pt.
            UserError: last.pt cannot be written, or another process has ended.
        """
        reason = self._agree()
        if reason:
            self.checkpoints.save_last()
        if reason in ("", SAVE):
            return
        at = f"epoch {self.checkpoints.progress.epoch}, step {self.checkpoints.progress.step}/{self.steps}"
        text = f"{reason} {self.max_minutes:g}" if reason == MAX_MINUTES else reason
        self.log(f"stopped by {text} at {at}; run the same command again to continue")
        self.group.all_reduce_(torch.zeros(1))  # waits until process 0 has saved
        raise Stopped(text)

    def _agree(self) -> str:
        """What all processes do now, which one of them has a reason for."""
        now = time.monotonic()
        reason = self.reason
        if self.max_minutes and now - self._began >= 60 * self.max_minutes:
            reason = reason or MAX_MINUTES
        if now - self.checkpoints.saved_at > SECONDS_BETWEEN_SAVES:
            reason = reason or SAVE
        votes = torch.tensor([int(reason == name) for name in REASONS])
        self.group.all_reduce_(votes)
        if self.group.size > 1 and now > self._next_check:
            self.group.check()  # torchrun may be gone, and with it who would end this process
            self._next_check = now + SECONDS_BETWEEN_CHECKS
        return max((name for name, n in zip(REASONS, votes.tolist(), strict=True) if n), key=REASONS.index, default="")


def out_of_patience(patience: int, progress: Progress) -> bool:
    """Return whether so many epochs have passed since the best one: robust overfitting (Rice et al. 2020)."""
    best = progress.best.get("epoch", progress.epoch - 1)
    return patience > 0 and not progress.step and progress.epoch - 1 - best >= patience
