"""Floating-point operations: how many a computation needs, and how many a second a device can do at most."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Dense peak in TFLOP/s by part of the device's name, from the vendor's data sheets.
PEAK_TFLOPS = {
    "H100": {"bf16": 989, "tf32": 495, "fp32": 67},
    "H200": {"bf16": 989, "tf32": 495, "fp32": 67},
    "A100": {"bf16": 312, "tf32": 156, "fp32": 19.5},
    "L40S": {"bf16": 362, "tf32": 183, "fp32": 91.6},
    "RTX 4090": {"bf16": 165, "tf32": 82.6, "fp32": 82.6},
    "V100": {"fp32": 15.7},
}


class FlopCounter(TorchDispatchMode):
    """Counts convolutions and matrix products, a multiply-add as two, also of gradients; ``total`` is the sum.

    As torch's FlopCounterMode, without its hooks on modules, which the gradients of an attack do not allow.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
        return result


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the device does at most in ``fp32``, ``tf32`` or ``bf16``; None where it is not known, as of CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if any(part in name for part in ("MIG", "PCIe", "NVL", "Laptop")):  # parts of a card, or cards with less power
        return None
    tflops = next((peaks.get(precision) for part, peaks in PEAK_TFLOPS.items() if part in name), None)
    return None if tflops is None else 1e12 * tflops
