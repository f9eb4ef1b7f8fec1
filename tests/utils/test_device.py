"""The processor's name, and whether bfloat16 pays on it."""

import pytest
import torch

from engine.trainer import Trainer
from tests.helpers import tiny_run
from utils import device
from utils.device import bf16_speed, describe, slow_precision
from utils.distributed import ProcessGroup
from utils.errors import UserError
from utils.flops import peak_flops

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_the_hardware_has_a_name():
    name = device.processor()
    assert name and f"({name})" in describe(CPU) and "thread" in describe(CPU)


@pytest.mark.parametrize(("precision", "where", "speed", "slow"), [
    ("bf16", CPU, 0.4, True), ("bf16", CPU, 2.0, False), ("fp32", CPU, 0.4, False), ("bf16", CUDA, 0.4, False),
])  # fmt: skip
def test_a_sentence_where_bfloat16_is_slower(monkeypatch, precision, where, speed, slow):
    monkeypatch.setattr(device, "bf16_speed", lambda: speed)
    sentence = slow_precision(precision, where)
    assert (sentence == "bf16 runs at 0.40 of the speed of fp32 on this processor: use --precision fp32") == slow
    assert slow or sentence is None


@pytest.mark.parametrize(("name", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA A100-PCIE-40GB", 312e12), ("NVIDIA H100 PCIe", None),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA H100 NVL", None), ("Unheard-of 1", None),
])  # fmt: skip
def test_the_peak_of_whole_cards(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(CUDA, "bf16") == peak and peak_flops(CPU, "bf16") is None


def test_one_gpu_is_not_for_several_processes(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="--device cuda:1 is one GPU for 2 processes: say --device cuda, one for each"):
        ProcessGroup(0, 2).device("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # on another machine it is another GPU
    assert ProcessGroup(0, 2).device("cuda:1") == "cuda:1"
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert ProcessGroup().device("cuda:1") == "cuda:1" and ProcessGroup(0, 2).device("cpu") == "cpu"


def test_the_speed_is_that_of_the_same_product(monkeypatch):
    """With a clock that runs three times as fast for bfloat16."""
    now, convolve = [0.0], torch.conv2d

    def conv2d(x, weight, **kwargs):
        now[0] += 0.3 if x.dtype == torch.bfloat16 else 0.1
        assert convolve(x, weight, **kwargs).shape == x.shape

    monkeypatch.setattr(torch, "conv2d", conv2d)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    assert bf16_speed() == pytest.approx(1 / 3)


def test_training_warns(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "bf16_speed", lambda: 0.5)
    Trainer(tiny_run(tmp_path, method="natural", epochs=1, precision="bf16")).fit()
    log = (tmp_path / "Logs" / "run" / "train.log").read_text()
    assert "warning: bf16 runs at 0.50 of the speed of fp32" in log
