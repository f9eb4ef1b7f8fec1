"""The networks: names, shapes, sizes, cost and initialisation of the published ones."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models import check_images, create_model
from tests.helpers import ROOT
from utils.errors import UserError

SHAPES = json.loads((ROOT / "tests" / "golden_shapes.json").read_text())


def meta_model(name, num_classes=10):
    """The network without memory for its weights."""
    with torch.device("meta"):
        return create_model(name, num_classes)


@pytest.mark.parametrize("name", SHAPES)
def test_names_and_shapes_are_the_published_ones(name):
    expected = SHAPES[name]
    head = "fc" if "fc.bias" in expected else "linear"
    state = meta_model(name, expected[f"{head}.bias"][0]).state_dict()
    # The order too: an optimizer's saved state goes by it.
    assert [(key, list(tensor.shape)) for key, tensor in state.items()] == list(expected.items())


@pytest.mark.parametrize(
    ("name", "num_classes", "count"),
    [
        ("wrn-34-10", 10, 46_160_474),
        ("wrn-34-10", 100, 46_218_164),
        ("wrn-34-20", 10, 184_531_674),
        ("wrn-34-20", 100, 184_646_964),
        ("resnet18-guide", 10, 11_173_962),
        ("resnet18-guide", 100, 11_220_132),
        ("resnet18", 10, 11_173_962),  # the strides do not change the parameters
        ("preactresnet18", 10, 11_172_170),
        ("preactresnet18-yopo", 10, 11_171_146),
        ("resnet50", 10, 23_520_842),
        ("wrn-28-10-swish", 10, 36_479_194),
        ("wrn-70-16-swish", 10, 266_796_506),
    ],
)
def test_parameter_count(name, num_classes, count):
    assert sum(p.numel() for p in meta_model(name, num_classes).parameters()) == count


def multiply_adds(model, size):
    """By arithmetic: every convolution's kernel volume times its output pixels, and the linear layer."""
    total = 0

    def count(module, _, output):
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += math.prod(module.weight.shape) * output.shape[-2] * output.shape[-1]
        elif isinstance(module, nn.Linear):
            total += math.prod(module.weight.shape)

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    model(torch.empty(1, 3, size, size, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize(("name", "gflop"), [("wrn-34-10", 13.318), ("resnet18-guide", 3.527)])
def test_cost_of_a_forward_pass(name, gflop):
    model = meta_model(name).eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 32, 32, device="meta"))
    # The published figures count a multiply-add as two operations.
    assert counter.get_total_flops() == 2 * multiply_adds(model, 32)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=5e-4)


def test_wideresnet_initialisation():
    torch.manual_seed(3)
    model = create_model("wrn-16-4", 100)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels))
            n = module.weight.numel()
            # 5 standard errors of an estimated standard deviation and of a mean
            assert module.weight.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n))
            assert abs(module.weight.mean().item()) < 5 * expected / math.sqrt(n)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert (model.fc.bias == 0).all()
    assert model.fc.weight.abs().max().item() <= 1 / math.sqrt(256)  # PyTorch's default, as published


def test_the_seed_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in create_model("wrn-10-1", 10).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("name", ["wrn-10-1", "wrn-16-2", "resnet18", "resnet18-guide", "preactresnet18"])
@pytest.mark.parametrize("size", [16, 32])
def test_logits_at_both_image_sizes(name, size):
    model = create_model(name, 7).eval()
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 7) and logits.dtype == torch.float32
        assert torch.isfinite(logits).all() and not torch.equal(logits[0], logits[1])
        # In eval mode an image's logits do not depend on the batch that it is in.
        torch.testing.assert_close(model(x[1:]), logits[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "groups", "sizes"),
    [
        ("wrn-10-1", ("block1", "block2", "block3"), [32, 16, 8]),
        ("wrn-34-10", ("block1", "block2", "block3"), [32, 16, 8]),
        ("resnet18", ("layer1", "layer2", "layer3", "layer4"), [32, 16, 8, 4]),
        ("preactresnet18", ("layer1", "layer2", "layer3", "layer4"), [32, 16, 8, 4]),
        ("resnet18-guide", ("layer1", "layer2", "layer3", "layer4"), [32, 32, 16, 8]),
    ],
)
def test_strides_by_feature_map_size(name, groups, sizes):
    model, seen = meta_model(name).eval(), []
    for group in groups:
        getattr(model, group).register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-2:]))
    model(torch.empty(1, 3, 32, 32, device="meta"))
    assert seen == [(size, size) for size in sizes]


@pytest.mark.parametrize("depth", [10, 16, 22, 28, 34, 40])
def test_every_legal_depth(depth):
    model = meta_model(f"wrn-{depth}-3")
    assert [len(getattr(model, f"block{i}").layer) for i in (1, 2, 3)] == [(depth - 4) // 6] * 3


@pytest.mark.parametrize("name", ["wrn-12-1", "wrn-4-1", "wrn-10-0", "wrn-33-10"])
def test_impossible_wideresnet(name):
    with pytest.raises(UserError, match=rf"{name}.*10, 16, 22, 28, 34.*width at least 1"):
        create_model(name, 10)


@pytest.mark.parametrize("name", ["", "wrn", "wrn-34", "WRN-34-10", "wrn-34-10-x", "wrn--34-10", "vgg16", "resnet"])
def test_unknown_network_lists_the_known_ones(name):
    with pytest.raises(UserError, match=r"unknown model.*wrn-34-10.*resnet18.*resnet18-guide.*preactresnet18"):
        create_model(name, 10)


@pytest.mark.parametrize("num_classes", [-1, 0, 1])
def test_too_few_classes(num_classes):
    with pytest.raises(UserError, match="at least 2 classes"):
        create_model("wrn-10-1", num_classes)


@pytest.mark.parametrize(("name", "batch", "size"), [("resnet18", 1, 8), ("wrn-10-1", 1, 4), ("wrn-10-1", 3, 0)])
def test_images_that_are_too_small_are_refused_before_training(name, batch, size):
    with pytest.raises(UserError, match=f"{name} cannot be trained on batches of {batch} images of {size}x{size}"):
        check_images(name, 10, batch, size, size)
    check_images(name, 10, batch + 1, size + 8, size + 8)


def test_a_network_without_memory_loads_no_compiler():
    """In a process of its own: another test may have loaded it."""
    code = "import sys, torch, models\nwith torch.device('meta'): models.create_model('wrn-10-1-swish', 10)\n"
    code += "models.create_model('preactresnet18', 10)\nsys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
