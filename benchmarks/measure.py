"""Clocks, memory and the hardware's limit, for all benchmarks."""

import ctypes
import gc
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from models import create_model

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(runs: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Time each run ``repeats`` times in turn (A B C A B C ...), so that drift affects all alike; return seconds.

    Before, each runs untimed: once, on a GPU three times, where the third training step is captured as a CUDA graph.
    """
    warmup = 3 if device.type == "cuda" else 1
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(warmup + repeats):
        for name, run in runs.items():
            synchronize(device)
            begin = time.perf_counter()
            run()
            synchronize(device)
            if i >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the pairs of slow / fast."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def peak_gflops(device: torch.device, precision: str) -> float:
    """The best rate of a large matrix product on this device in this precision, GFLOP/s.

    On a CPU both of PyTorch's libraries are tried (MKL, and oneDNN, which runs the convolutions): the faster counts.
    """
    dtype = DTYPES[precision]
    best = 0.0
    for n in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        products = [lambda a=a, b=b: torch.mm(a, b)]
        if device.type == "cpu" and torch.backends.mkldnn.is_available():
            products.append(lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
        for product in products:
            times = alternate({"product": product}, 10, device)["product"]
            best = max(best, 2 * n**3 / min(times) / 1e9)
    return best


def forward_gflop(name: str, num_classes: int, size: int) -> float:
    """GFLOP of one image's forward pass, a multiply-add counted as two; of convolutions and matrix products."""
    with torch.device("meta"):
        model = create_model(name, num_classes).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, size, size))
    return counter.get_total_flops() / 1e9


def lbgat_step_gflop(student: float, guide: float, num_steps: int, beta: float) -> float:
    """GFLOP per image of one LBGAT step in which nothing is computed twice, from those of the forward passes.

    The student: 1 clean pass, 2 per attack step (forward, gradient in the images), 3 per trained pass (at beta = 0
    the clean one is 1, without gradient). The guide: 3.
    """
    trained = 6 if beta else 4
    return student * (1 + 2 * num_steps + trained) + guide * 3


class PeakMemory:
    """MiB that the block needs at its peak beyond what was held before it.

    CUDA's allocator counts them; on a CPU it is the growth of the process's resident set, sampled every 2 ms, after
    free memory was returned to the system.
    """

    def __init__(self, device: torch.device):
        self.device, self.mib = device, 0.0

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device) / 2**20
        else:
            release_free_memory()
            self._before = resident_mib()
            self._done = threading.Event()
            self._sampler = threading.Thread(target=self._sample)
            self._sampler.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.002):
            self.mib = max(self.mib, resident_mib() - self._before)

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mib = torch.cuda.max_memory_allocated(self.device) / 2**20 - self._before
        else:
            self._done.set()
            self._sampler.join()


def release_free_memory() -> None:
    """Return freed heap memory to the system, where the C library can (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def resident_mib() -> float:
    """Resident memory of this process now (its peak where /proc is missing), MiB."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
