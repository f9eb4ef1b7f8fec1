"""Where to compute, and with which arithmetic."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch

from utils.errors import UserError


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
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision != "fp32"
    return partial(torch.autocast, device.type, torch.bfloat16) if precision == "bf16" else nullcontext


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


def describe(device: torch.device) -> str:
    """One phrase about the hardware and software for logs and reports."""
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        hardware = f"CPU with {threads} thread{'s' * (threads != 1)}"
    return f"{hardware}, torch {torch.__version__}"
