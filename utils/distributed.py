"""Several processes on one job, started by torchrun: rank and size, messages, a shared counter, and one end for all.

A message is JSON or bytes and travels in tensors by gloo; tensors on GPUs travel by NCCL. Nothing that arrives is
unpickled, since torchrun's store and gloo's connections ask nobody for a password. Waiting is a loop, over the store's
counters or until a collective is complete, so that Ctrl-C and SIGTERM interrupt it.
"""

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError, first_line

T = TypeVar("T")
POLL_SECONDS = 0.05
NOTICE_SECONDS = 60.0
LOST = "lost contact with torchrun or with another process: rerun the same command to resume"


class ProcessGroup:
    """The processes of one run, as one of them sees them; without torchrun it is alone.

    Attributes:
        rank: number of this process, from 0 to ``size`` - 1.
        local_rank: its number on its machine.
        is_main: whether it is rank 0, which prints, logs and writes reports.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, store: Any = None) -> None:
        self.rank, self.size, self.local_rank, self.is_main = rank, size, local_rank, rank == 0
        self._store = store
        self._counters: Counter[str] = Counter()
        self._messages = 0

    @classmethod
    def init(cls) -> "ProcessGroup":
        """Join the group that torchrun describes in the environment.

        Raises:
            UserError: the environment is not torchrun's, or nobody answers at its address.
        """
        size = _integer("WORLD_SIZE", 1)
        if size == 1:
            return cls()
        try:
            rank, local_rank = _integer("RANK", 0), _integer("LOCAL_RANK", 0)
            store, *_ = next(dist.rendezvous("env://", timeout=timedelta(minutes=1)))
            group = cls(rank, size, local_rank, dist.PrefixStore("lbgat", store))
            group._arrive()  # init_process_group cannot be interrupted, so it starts when all are there
            dist.init_process_group(_backend(), store=store, rank=rank, world_size=size)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"WORLD_SIZE is {size}, but no torchrun answers: unset it ({first_line(error)})") from error
        return group

    @property
    def launcher(self) -> list[str]:
        """The words before the program's name on the command line."""
        if self.size == 1:
            return ["python"]
        nodes, local = os.environ.get("GROUP_WORLD_SIZE", "1"), os.environ.get("LOCAL_WORLD_SIZE", str(self.size))
        return ["torchrun", *([] if nodes == "1" else [f"--nnodes={nodes}"]), f"--nproc-per-node={local}"]

    def device(self, name: str) -> str:
        """The device of this process: ``auto`` and ``cuda`` give each process of a machine the next of its GPUs, and
        one GPU for several of them is a UserError."""
        local = _integer("LOCAL_WORLD_SIZE", self.size)
        if local > 1 and name.startswith("cuda:"):
            raise UserError(f"--device {name} is one GPU for {local} processes: say --device cuda, one for each")
        if self.size > 1 and name in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name

    def rows(self, n: int) -> slice:
        """The rows of this process, of a batch of n: even parts, the first processes' one longer where needed."""
        share, longer = divmod(n, self.size)
        begin = self.rank * share + min(self.rank, longer)
        return slice(begin, begin + share + (self.rank < longer))

    def all_reduce_(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, which call this with the same shapes; all sums are equal.

        Raises:
            UserError: another process has ended.
        """
        self._exchange(tensors, lambda flat: dist.all_reduce(flat, async_op=True))

    def broadcast_(self, *tensors: Tensor) -> None:
        """Replace each tensor by rank 0's.

        Raises:
            UserError: another process has ended.
        """
        self._exchange(tensors, lambda flat: dist.broadcast(flat, 0, async_op=True))

    def all_gather(self, part: Tensor, n: int) -> Tensor:
        """The batch of n rows of which each process holds its ``rows``, differentiable: a gradient that all processes
        compute alike of the whole batch becomes that of the part."""
        return part if self.size == 1 else _AllGather.apply(part, n, self)

    def _exchange(self, tensors: Sequence[Tensor], start: Callable[[Tensor], Any]) -> None:
        """Run a collective in place on all tensors of a type at once."""
        if self.size == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault(tensor.dtype, []).append(tensor.detach())
        for same in kinds.values():
            alone = len(same) == 1 and same[0].is_contiguous()
            flat = same[0] if alone else torch.cat([tensor.reshape(-1) for tensor in same])
            _wait(start, flat)
            if not alone:
                parts = flat.split([tensor.numel() for tensor in same])
                torch._foreach_copy_(same, [part.view(t.shape) for part, t in zip(parts, same, strict=True)])

    def __deepcopy__(self, memo: dict) -> "ProcessGroup":
        return self  # also in the copy of a network whose BatchNorm refers to it

    def add(self, counter: str, amount: int) -> int:
        """Add to a counter that all processes share; return the sum so far.

        Raises:
            UserError: torchrun, which keeps the counters, is gone.
        """
        if self._store is None:
            self._counters[counter] += amount
            return self._counters[counter]
        try:
            return self._store.add(counter, amount)
        except RuntimeError as error:
            raise UserError(LOST) from error

    def check(self) -> None:
        """Raises: UserError: torchrun is gone. Call it before writing what a newer run may own by now."""
        self.add("alive", 0)

    def next_jobs(self, jobs: Sequence[T]) -> Iterator[T]:
        """Yield the next job that no process has taken, until there is none; once in a run."""
        while (index := self.add("jobs", 1) - 1) < len(jobs):
            yield jobs[index]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.gather("")

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes by rank, at rank 0; elsewhere nothing."""
        return [json.loads(data) for data in self.gather_bytes(json.dumps(value).encode())]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's JSON value."""
        return json.loads(self.broadcast_bytes(json.dumps(value).encode()))

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of all processes by rank, at rank 0; elsewhere nothing."""
        if self.size == 1:
            return [data]
        length = torch.tensor([len(data)])
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        self._complete(lambda: dist.all_gather(lengths, length, async_op=True))
        padded = torch.zeros(int(max(lengths)), dtype=torch.uint8)
        padded[: len(data)] = _tensor(data)
        everyone = [torch.empty_like(padded) for _ in lengths] if self.is_main else None
        self._complete(lambda: dist.gather(padded, everyone, async_op=True))
        return [_bytes(tensor[: int(n)]) for tensor, n in zip(everyone or [], lengths, strict=self.is_main)]

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Rank 0's bytes."""
        if self.size == 1:
            return data
        length = torch.tensor([len(data)])
        self._complete(lambda: dist.broadcast(length, 0, async_op=True))
        tensor = _tensor(data) if self.is_main else torch.empty(int(length), dtype=torch.uint8)
        self._complete(lambda: dist.broadcast(tensor, 0, async_op=True))
        return _bytes(tensor)

    def is_first_to_end(self) -> bool:
        """Whether no other process has ended early before this one, so that it says why."""
        try:
            return self.add("ended early", 1) == 1
        except UserError:
            return self.is_main

    def _arrive(self) -> None:
        """Wait until all processes have come as far as this one.

        Raises:
            UserError: torchrun is gone.
            SystemExit: another process has ended early, and says why.
        """
        self._messages += 1
        self.add(f"messages of {self.rank}", 1)
        self.add(f"message {self._messages}", 1)
        notice = time.monotonic() + NOTICE_SECONDS
        while self.add(f"message {self._messages}", 0) < self.size:
            if self.add("ended early", 0):
                raise SystemExit(1)
            if time.monotonic() > notice:
                late = [rank for rank in range(self.size) if self.add(f"messages of {rank}", 0) < self._messages]
                print(f"process {self.rank} is waiting for process {', '.join(map(str, late))}", file=sys.stderr)
                notice = float("inf")
            time.sleep(POLL_SECONDS)

    def _complete(self, start: Callable[[], Any]) -> None:
        """Run a collective, once all processes are there.

        Raises:
            UserError: another process has ended, or torchrun.
        """
        self._arrive()
        _wait(lambda _: start(), None)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, n: int, group: ProcessGroup) -> Tensor:
        ctx.rows = group.rows(n)
        whole = part.new_zeros(n, *part.shape[1:])
        whole[ctx.rows] = part
        group.all_reduce_(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.rows], None, None


def _backend() -> str:
    """gloo; and for tensors on GPUs NCCL, where each process of the machine has a GPU of its own."""
    own = torch.cuda.device_count() >= _integer("LOCAL_WORLD_SIZE", 1)
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() and own else "gloo"


def _wait(start: Callable[[Any], Any], tensor: Tensor | None) -> None:
    """Run a collective; where it runs on CPUs, so that signals interrupt the waiting.

    Raises:
        UserError: another process has ended.
    """
    pause = 2e-5
    try:
        work = start(tensor)
        if tensor is None or not tensor.is_cuda or _backend() == "gloo":
            while not work.is_completed():
                time.sleep(pause)
                pause = min(2 * pause, 0.001)
        work.wait()
    except RuntimeError as error:
        raise UserError(f"{LOST} ({first_line(error)})") from error


def _integer(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not re.fullmatch("[0-9]{1,9}", text) or (name == "WORLD_SIZE" and int(text) == 0):
        raise UserError(f"{name}={text!r} in the environment is no number: unset it, or start with torchrun")
    return int(text)


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


@contextmanager
def exit_cleanly(group: ProcessGroup) -> Iterator[None]:
    """End by Ctrl-C with status 130 and by SIGTERM with 143; of several processes the first to end prints its line."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if group.is_first_to_end():
            print("interrupted: rerun the same command to resume from what is saved", file=sys.stderr)
        raise SystemExit(128 + interrupt.args[0]) from None
    except Exception:
        if group.is_first_to_end():
            raise
        raise SystemExit(1) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
