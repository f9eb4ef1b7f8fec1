"""Shared fixtures: the golden file and the tiny networks of its cases."""

import os
import sys
from collections import OrderedDict
from pathlib import Path

# The networks are tiny: threads would mostly wait for each other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
GOLDEN_PATH = Path(os.environ.get("LBGAT_GOLDEN", ROOT / "tests" / "golden.npz"))


def tiny_net(state: dict[str, torch.Tensor]) -> nn.Sequential:
    """The golden cases' network (conv-BN-ReLU twice, pool, linear), its widths read off a state dict."""
    widths = [state["conv1.weight"].shape[0], state["conv2.weight"].shape[0]]
    channels, classes = state["conv1.weight"].shape[1], state["fc.weight"].shape[0]
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, widths[0], 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(widths[0]),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(widths[0], widths[1], 3, stride=2, padding=1, bias=False),
            bn2=nn.BatchNorm2d(widths[1]),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            fc=nn.Linear(widths[1], classes),
        )
    ).double()
    net.load_state_dict(state)
    return net


class Golden:
    """Numbers that the authors' programs produce; keys are ``case/what``."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path, allow_pickle=False))
        self.cases = sorted({key.split("/")[0] for key in self.arrays} - {"meta", "forward"})
        self.networks = sorted({key.split("/")[1] for key in self.arrays if key.startswith("forward/")})
        self.steps = int(self.arrays["meta/steps"])
        self.num_classes = int(self.arrays["meta/num_classes"])
        self.sin_factor = float(self.arrays["meta/sin_factor"])

    def get(self, *path: object) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays["/".join(map(str, path))]))

    def state(self, case: str, which: str) -> dict[str, torch.Tensor]:
        prefix = f"{case}/{which}/"
        return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.arrays.items() if k.startswith(prefix)}


GOLDEN = Golden(GOLDEN_PATH)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
