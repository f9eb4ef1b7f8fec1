"""Where to compute, and with which arithmetic."""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch

from utils.errors import UserError
from utils.options import PRECISIONS, require


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N`` -> a device that exists.

    Raises:
        UserError: the CUDA device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: this machine or this PyTorch has no such CUDA device; use --device cpu or auto"
        )
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # the default of whatever names no device
    return device


def set_precision(precision: str, device: torch.device) -> Callable[[], AbstractContextManager]:
    """Set the arithmetic; returns what makes the context for forward passes.

    fp32 is IEEE float32 throughout. tf32 lets CUDA's matrix units round the inputs of products to 10 bits of mantissa
    (no effect on a CPU). bf16 runs convolutions and products in bfloat16 by autocast; weights stay float32.

    Raises:
        UserError: another precision.
    """
    require(precision in PRECISIONS, f"precision {precision!r}: choose {', '.join(PRECISIONS)}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    return partial(torch.autocast, device.type, torch.bfloat16) if precision == "bf16" else nullcontext


def bf16_speed() -> float:
    """How many times as fast as in float32 a convolution runs in bfloat16 on this CPU; it takes about half a second.

    Processors without products in bfloat16 convert every number, and are slower than in float32.
    """
    x, weight = torch.ones(16, 64, 32, 32), torch.ones(64, 64, 3, 3)
    x, weight = (tensor.to(memory_format=torch.channels_last) for tensor in (x, weight))
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        inputs, times = (x.to(dtype), weight.to(dtype)), []
        while len(times) < 3 or sum(times) < 0.2:
            began = time.perf_counter()
            torch.conv2d(*inputs, padding=1)
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def slow_precision(precision: str, device: torch.device) -> str | None:
    """A sentence if float32 is faster here, else None."""
    if precision != "bf16" or device.type != "cpu" or (speed := bf16_speed()) >= 0.95:
        return None
    return f"bf16 runs at {speed:.2f} of the speed of fp32 on this processor: use --precision fp32"


@cache
def processor() -> str:
    """The CPU's name as the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def set_deterministic(on: bool) -> None:
    """Make PyTorch use only algorithms that give the same bits each time, and raise RuntimeError where it has none."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.utils.deterministic.fill_uninitialized_memory = False  # it would only cost time
    torch.use_deterministic_algorithms(on)


@contextmanager
def ieee_products() -> Iterator[None]:
    """float32 throughout, whatever ``set_precision`` has set."""
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Run on the stream of ``captured``, so that what libraries set up once for a stream is there for the capture."""
    stream = _capture_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


@contextmanager
def captured(device: torch.device, pool: Any = None) -> Iterator[torch.cuda.CUDAGraph]:
    """Record the work of the context as a CUDA graph, without running it.

    All captures of a device have one stream: graphs share the memory of a ``pool`` only then.

    Raises:
        RuntimeError: the work cannot be captured. The stream is the one of before, which PyTorch alone does not see to.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=_capture_stream(device)):
                yield graph
        finally:
            torch.cuda.set_stream(before)


def describe(device: torch.device) -> str:
    """One phrase about the hardware and software for logs and reports."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        hardware = f"CPU with {threads} thread{'s' * (threads != 1)} ({processor()})"
    return f"{hardware}, torch {torch.__version__}"
