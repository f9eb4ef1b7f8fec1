"""Processes as torchrun starts them, without the seconds that it takes."""

import os
import select
import signal
import sys
import time
import traceback

import torch
from torch.distributed import TCPStore

from utils.distributed import ProcessGroup
from utils.errors import run_program


def fork(main, output, rank=0, size=1, port=0):
    if pid := os.fork():
        return pid
    set_environment(rank, size, port)
    torch.set_num_threads(1)  # OpenMP's threads of the parent do not exist here, and would be waited for
    code = 1
    try:
        sys.stdout = sys.stderr = open(output, "a", buffering=1)  # noqa: SIM115
        run_program(main)
        code = 0
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def set_environment(rank, size, port):
    """As torchrun does, which keeps the store itself."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0",
    )  # fmt: skip


class Store:
    """torchrun's key-value store, in a process of its own: with the store's threads in this one, a fork could inherit a
    lock that nobody releases."""

    def __init__(self):
        receiver, sender = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
            os.write(sender, str(store.port).encode())
            while True:
                time.sleep(60)
        os.close(sender)
        assert select.select([receiver], [], [], 120)[0], "no store"
        self.port = int(os.read(receiver, 16))
        os.close(receiver)

    def __del__(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def status(pid, seconds=240, kill=True):
    """The exit status, negative for a signal.

    Raises:
        AssertionError: the process did not end, and was killed.
        TimeoutError: it did not end, and ``kill`` is false.
    """
    end = time.monotonic() + seconds
    while True:
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(code)
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    if not kill:
        raise TimeoutError
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} did not end within {seconds} s")


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def together(main, folder, size=2, store=None):
    """Run ``main(group)`` in so many processes; return their exit statuses and all that they print."""
    store, output = store or Store(), folder / "output"
    pids = [fork(lambda: main(ProcessGroup.init()), output, rank, size, store.port) for rank in range(size)]
    return [status(pid) for pid in pids], output.read_text()
