"""Several processes on one evaluation, started by torchrun: who takes which job, what all know, and one end for all.

They speak through torchrun's own key-value store alone: its counters deal out the jobs, so that nobody waits for the
slowest, and waiting for one another leaves every process free to hear a signal.
"""

import os
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch

from utils.errors import UserError

T = TypeVar("T")
PIECE = 1 << 20  # the store takes no value above 8 MB
SECONDS_BETWEEN_LOOKS = 0.2


class Team:
    """The processes of one evaluation, as one of them sees them; by default it is alone.

    Attributes:
        rank: its number among all ``size``; rank 0 prints, logs and writes the report.
        local_rank: its number on its machine.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: Any = None) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._store = store
        self._counters: Counter[str] = Counter()
        self._messages = 0

    @classmethod
    def join(cls) -> "Team":
        """The team that torchrun made, as its environment variables tell.

        Raises:
            UserError: these are set, and nobody answers there.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from torch.distributed import rendezvous

        try:
            store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"WORLD_SIZE is set, but no torchrun is behind it: unset it ({reason})") from error
        return cls(rank, size, int(os.environ.get("LOCAL_RANK", "0")), store)

    @property
    def launcher(self) -> list[str]:
        """What stood before the program's name on the command line."""
        if self.size == 1:
            return ["python"]
        nodes, local = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", str(self.size))
        return ["torchrun", *([] if nodes == "1" else [f"--nnodes={nodes}"]), f"--nproc-per-node={local}"]

    def device(self, name: str) -> str:
        """Where this process is to compute: ``auto`` and ``cuda`` give each on a machine the next of its GPUs."""
        if self.size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name

    def add(self, counter: str, amount: int) -> int:
        """Count together with all others; returns the sum so far.

        Raises:
            UserError: torchrun, which keeps the count, is gone.
        """
        if self._store is None:
            self._counters[counter] += int(amount)
            return self._counters[counter]
        try:
            return self._store.add(counter, int(amount))
        except RuntimeError as error:
            raise UserError("torchrun is gone: the same command goes on with what is not finished") from error

    def share(self, jobs: Sequence[T]) -> Iterator[T]:
        """The next job that nobody has taken, until there is none; once in a team's life."""
        while (index := self.add("jobs taken", 1) - 1) < len(jobs):
            yield jobs[index]

    def gather(self, value: T) -> list[T]:
        """At rank 0 everybody's value, by rank, once all have got here; elsewhere nothing."""
        self._messages += 1
        if self.rank > 0:
            self._send(f"{self._messages} of {self.rank}", value)
            return []
        return [value, *(self._receive(f"{self._messages} of {rank}") for rank in range(1, self.size))]

    def broadcast(self, value: T) -> T:
        """Rank 0's value, everywhere, once rank 0 has got here."""
        self._messages += 1
        if self.rank > 0:
            return self._receive(f"{self._messages}")
        if self.size > 1:
            self._send(f"{self._messages}", value)
        return value

    def first_to_end(self) -> bool:
        """Whether no other process has ended early before this one, so that it is the one to say why."""
        try:
            return self.add("ended early", 1) == 1
        except UserError:
            return self.rank == 0

    def _send(self, key: str, value: Any) -> None:
        data = pickle.dumps(value)
        pieces = range(0, len(data), PIECE)
        for start in pieces:
            self._store.set(f"{key}: {start}", data[start : start + PIECE])
        self._store.set(key, str(len(data)))

    def _receive(self, key: str) -> Any:
        while self.add("ended early", 0) == 0:
            if self._store.check([key]):
                pieces = range(0, int(self._store.get(key)), PIECE)
                return pickle.loads(b"".join(self._store.get(f"{key}: {start}") for start in pieces))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        raise SystemExit(1)


@contextmanager
def ending_together(team: Team) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the program with one line and status 130 or 143; of a team, one process tells why."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if team.first_to_end():
            print("stopped: finished attacks are kept, and the same command goes on with the others", file=sys.stderr)
        raise SystemExit(128 + interrupt.args[0]) from None
    except Exception:
        if team.first_to_end():
            raise
        raise SystemExit(1) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
