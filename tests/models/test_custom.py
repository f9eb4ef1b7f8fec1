"""Networks of a user's own file, and the normalisation inside a network."""

import hashlib

import pytest
import torch
from torch import nn

from models import canonical_name, check_images, create_model
from models.accelerate import AcceleratedModel, AccelerationConfig
from models.custom import load_source, short_name, source_hashes
from models.normalize import NAMED, Normalization, parse_normalization
from tests.helpers import NET_SOURCE, digits
from utils.errors import UserError


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "my_net.py"
    path.write_text(NET_SOURCE)
    return path


def test_the_factory_is_called_with_the_number_of_classes_and_its_file_is_hashed(net):
    name = f"{net}:MyNet"
    model = create_model(name, 7)
    assert model(torch.rand(2, 3, 16, 16)).shape == (2, 7)
    assert source_hashes(name, "wrn-10-1") == {name: hashlib.sha256(net.read_bytes()).hexdigest()}
    assert short_name(name) == "my_net-MyNet" and short_name("wrn-10-1") == "wrn-10-1"
    torch.manual_seed(4)
    check_images(name, 7, 5, 16, 16)
    drawn = torch.rand(1)
    torch.manual_seed(4)
    assert drawn == torch.rand(1)  # the check takes no random numbers


def test_a_network_of_an_installed_package():
    model = create_model("torchvision.models:squeezenet1_1", 6)
    assert model.classifier[1].out_channels == 6 and len(load_source("torchvision.models:squeezenet1_1").sha256) == 64


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("none.py:MyNet", r"no source file at .*none\.py"),
        ("my_net.py:Other", r"has no class or function 'Other': its networks are MyNet, Pair$"),
        ("my_net.py:seven", r"returns a int: it must return a torch\.nn\.Module"),
        ("my_net.py:no_argument", r"cannot be called with num_classes=10 \(TypeError"),
        ("my_net.py:wrong_size", r"returned logits of shape \(2, 11\) for 10 classes .*must be \(2, 10\)"),
        ("my_net.py:Pair", "returned a tuple: it must return logits"),
        ("my_net.py:lazy", r"has a lazy layer \(1\.weight\), whose size its first images set: give it its size"),
        ("my_net.py:", "write FILE.py:NAME or MODULE:NAME"),
        ("broken.py:MyNet", r"broken\.py cannot be loaded \(ZeroDivisionError: division by zero\)"),
        ("exits.py:MyNet", r"exits\.py cannot be loaded \(SystemExit: 3\)"),
        ("no_such_package:MyNet", r"no_such_package cannot be loaded \(ModuleNotFoundError"),
    ],
)
def test_what_does_not_fit_is_one_sentence(net, name, sentence):
    (net.parent / "broken.py").write_text("1 / 0")
    (net.parent / "exits.py").write_text("raise SystemExit(3)")
    with pytest.raises(UserError, match=sentence):
        check_images(f"{net.parent}/{name}" if ".py" in name else name, 10, 8, 16, 16)


def test_images_that_do_not_fit_a_users_network(net):
    with pytest.raises(UserError, match=r"does not fit images of shape \(2, 3, 8, 8\): it raised RuntimeError: mat1"):
        check_images(f"{net}:MyNet", 10, 8, 8, 8)


def test_a_users_network_is_neither_traced_nor_reordered(net):
    """Images in channels_last order: ``view`` works, and the logits are the network's own."""
    model = create_model(f"{net}:MyNet", 10)
    fast = AcceleratedModel(model, AccelerationConfig())
    x = digits(4)[0].contiguous(memory_format=torch.channels_last)
    assert not x.is_contiguous() and fast._folded is None
    model.eval()
    with torch.no_grad():
        assert torch.equal(fast.attack_logits(x), model(x.contiguous()))
    assert AcceleratedModel(create_model("wrn-10-1", 10, "cifar10"), AccelerationConfig())._folded is not None


def test_a_hook_is_not_lost_by_folding():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    assert AcceleratedModel(model, AccelerationConfig())._folded is None


@pytest.mark.parametrize("text", ["cifar10", "cifar100", "0.5,0.4,0.3/0.25,0.2,0.125"])
def test_normalisation_is_inside_the_network(text):
    torch.manual_seed(0)
    plain = create_model("wrn-10-1", 10).eval()
    torch.manual_seed(0)
    model = create_model("wrn-10-1", 10, text).eval()
    normalization = parse_normalization(text)
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (normalization.mean, normalization.std))
    x, _ = digits(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain((x - mean) / std), rtol=0, atol=0)
        fast = AcceleratedModel(model, AccelerationConfig())
        torch.testing.assert_close(fast.attack_logits(x), model(x), rtol=1e-4, atol=1e-5)
    names = {f"model.{name}" for name in plain.state_dict()}
    assert model.state_dict().keys() == names | {"normalize.mean", "normalize.std"}
    assert parse_normalization(str(normalization)) == normalization


def test_the_named_normalisations_are_of_the_usual_four_digits():
    assert NAMED["cifar10"] == Normalization((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
    assert parse_normalization("none") is None


@pytest.mark.parametrize(
    "text", ["", "imagenet", "0.5/0.5", "1,2,3", "0,0,0/1,1,0", "0,0,0/1,1,nan", "125,123,114/63,62,67", "a,b,c/1,1,1"]
)
def test_impossible_normalisation(text):
    with pytest.raises(UserError, match="choose none, cifar10 or cifar100, or write three means"):
        create_model("wrn-10-1", 10, text)


def test_names_of_robustbench():
    assert canonical_name("WideResNet-34-10") == "wrn-34-10"
    assert [canonical_name(f"{kind}ResNet-18") for kind in ("PreAct", "")] == ["preactresnet18", "resnet18"]
    assert canonical_name("WideResNet-70-16-swish") == "wrn-70-16-swish"
    assert canonical_name("WideResNet-70-16-relu") == "WideResNet-70-16-relu"
    assert create_model("WideResNet-10-1", 10).state_dict().keys() == create_model("wrn-10-1", 10).state_dict().keys()
