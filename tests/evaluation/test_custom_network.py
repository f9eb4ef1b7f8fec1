"""torchvision's ResNet-18 from a user's file: trains, resumes, is attacked, and gives the same logits from Python."""

import json

import pytest
import torch

from engine.trainer import Trainer
from models import load
from tests.helpers import digits, tiny_run
from utils.errors import UserError

NET = "from torchvision.models import resnet18\n\ndef net(num_classes):\n    return resnet18(num_classes=num_classes)\n"
PROBE = """
import torch
from torch import nn

class Probe(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.features, self.last = nn.Linear(3, 8), nn.Linear(8, num_classes)

    def forward(self, x):
        with torch.no_grad():
            features = self.features(x.mean((2, 3)))
        return self.last(features)
"""
SMALL = {"num_steps": 1, "limit_train": 16, "eval_size": 4, "val_size": 8, "decay_epochs": (), "method": "trades"}


@pytest.fixture
def name(tmp_path):
    (tmp_path / "my_net.py").write_text(NET)
    return f"{tmp_path}/my_net.py:net"


def test_train_resume_attack_and_load(tmp_path, name, program):
    run = {**SMALL, "student": name, "normalize": "0.5,0.5,0.5/0.25,0.25,0.25", "save_freq": 9}
    first = Trainer(tiny_run(tmp_path, **run, epochs=1))
    first.fit()
    second = Trainer(tiny_run(tmp_path, **run, epochs=2))
    assert second.progress.epoch == 2
    assert all(torch.equal(a, b) for a, b in zip(first.student.parameters(), second.student.parameters(), strict=True))
    config = json.loads((tmp_path / "Logs/run/config.json").read_text())
    assert list(config["sources"]) == [name] and len(config["sources"][name]) == 64
    path = tmp_path / "checkpoints/run/last.pt"
    x, y = digits(6)
    with torch.no_grad():
        assert torch.equal(load(path, name)(x), second.student.eval()(x))
        correct = (load(path, name)(x).argmax(1) == y).sum().item()
    quick = ("--version", "custom", "--attacks", "apgd-ce", "--n-examples", 6)
    status, _, error = program("--checkpoint", path, *quick)
    assert status == 1 and f"whose code runs only if you name it: add --student {name}" in error
    status, out, error = program("--checkpoint", path, "--student", name, *quick)
    assert status == 0 and f"clean {100 * correct / 6:.2f}%" in out.splitlines()[-1], error
    assert "normalisation 0.5,0.5,0.5/0.25,0.25,0.25 from 'normalize.mean'" in out.splitlines()[0]
    report = json.loads((tmp_path / "Logs/run/autoattack.json").read_text())
    assert report["source_sha256"] == config["sources"][name]


def test_another_version_of_the_file_is_not_resumed(tmp_path, name):
    from models.custom import load_source

    source = tmp_path / "my_net.py"
    text = "from torch import nn\nnet = lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(768, num_classes))\n"
    source.write_text(text)
    config = tiny_run(tmp_path, **SMALL, student=name, epochs=1)
    Trainer(config).fit()
    source.write_text(text + "\n# edited\n")
    load_source.cache_clear()
    with pytest.raises(UserError, match=r"of another run \(the source file of a network\): use the same settings"):
        Trainer(config)


def test_a_guide_needs_no_gradient_of_its_images(tmp_path):
    """Such as a pretrained network under torch.no_grad with a new last layer."""
    (tmp_path / "probe.py").write_text(PROBE)
    run = {**SMALL, "method": "lbgat", "epochs": 1, "guide": f"{tmp_path}/probe.py:Probe"}
    trainer = Trainer(tiny_run(tmp_path, **run))
    trainer.fit()
    assert trainer.progress.epoch == 2
    with pytest.raises(UserError, match="Probe has no gradient, which all attacks but"):
        Trainer(tiny_run(tmp_path, **run | {"student": run["guide"]}))


def test_the_name_of_the_run_is_one_of_a_folder(tmp_path, name):
    assert tiny_run(tmp_path, student=name, mark="").run_name == "lbgat6-digits-my_net-net"
