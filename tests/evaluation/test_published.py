"""--export published: a strict load by a class of the published form, and the same logits."""

import json

import pytest
import torch
from torch import nn

from evaluation.published import export_published, published_state
from evaluation.target import LoadedModel
from models import create_model
from models.checkpoint import load
from models.wideresnet import NetworkBlock, WideResNet
from utils.errors import UserError


class PublishedForm(WideResNet):
    """The published class as its checkpoints show it: a further group of blocks, made like block1 and never called."""

    def __init__(self, depth, widen_factor, num_classes):
        super().__init__(depth, widen_factor, num_classes)
        self.sub_block1 = NetworkBlock((depth - 4) // 6, 16, 16 * widen_factor, stride=1)


@pytest.mark.parametrize(("depth", "width", "num_classes"), [(10, 1, 10), (16, 2, 100)])
def test_the_published_program_loads_it_strictly(tmp_path, depth, width, num_classes):
    name = f"wrn-{depth}-{width}"
    model = create_model(name, num_classes).eval()
    target = LoadedModel(model, name, num_classes, "cifar100", {})
    line = export_published(tmp_path, "some-run", target, {})
    path = tmp_path / "some-run.pt"
    assert line == f"published form: {path} ({name}, {num_classes} classes)"
    theirs = nn.DataParallel(PublishedForm(depth, width, num_classes))  # as auto_attack_eval.py wraps it
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(theirs.module.eval()(x), model(x))
    assert torch.equal(load(path)(x), model(x))  # and so do we


def test_names_are_those_of_the_class():
    names = published_state(create_model("wrn-16-1", 10)).keys()
    assert names == nn.DataParallel(PublishedForm(16, 1, 10)).state_dict().keys()


def test_other_networks_are_refused(tmp_path):
    target = LoadedModel(create_model("resnet18", 10), "resnet18", 10, "cifar10", {})
    with pytest.raises(UserError, match="evaluates WideResNets only, not resnet18"):
        export_published(tmp_path, "x", target, {})


def test_from_the_command_line(program, checkpoint, tmp_path):
    flags = ["--version", "custom", "--attacks", "apgd-ce", "--n-examples", 4, "--epsilon", "0.1"]
    status, out, err = program("--checkpoint", checkpoint, *flags, "--export", "published", tmp_path / "out")
    assert status == 0, err
    assert f"published form: {tmp_path}/out/some-run.pt" in out
    assert json.loads((tmp_path / "Logs/some-run/autoattack.json").read_text())["n"] == 4
