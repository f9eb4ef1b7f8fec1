"""torch.hub gives the networks that ship."""

import json

import pytest
import torch

from datasets.loader import to_device, to_float
from tests.helpers import DIGITS, ROOT


@pytest.mark.parametrize(
    ("name", "file", "images", "classes"),
    [
        ("lbgat6_wrn16_2_cifar100", "lbgat6-short-cifar100-wrn16-2.pt", (2, 3, 32, 32), 100),
        ("lbgat2_wrn10_1_digits", "quickstart-digits.pt", (2, 3, 16, 16), 10),
    ],
)
def test_network_and_weights(name, file, images, classes):
    model = torch.hub.load(str(ROOT), name, source="local")
    weights = torch.load(ROOT / "checkpoints" / file, weights_only=True)["student"]
    assert not model.training and model(torch.rand(images)).shape == (2, classes)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


def test_without_weights():
    one, other = (
        torch.hub.load(str(ROOT), "lbgat2_wrn10_1_digits", source="local", pretrained=False) for _ in range(2)
    )
    assert not torch.equal(one.conv1.weight, other.conv1.weight)


def test_the_digits_network_is_the_one_that_was_measured():
    """Its clean accuracy is that of results/quickstart-digits."""
    model = torch.hub.load(str(ROOT), "lbgat2_wrn10_1_digits", source="local")
    pixels, labels = to_device(DIGITS.x_test[:100], DIGITS.y_test[:100], torch.device("cpu"))
    correct = (model(to_float(pixels)).argmax(1) == labels).sum().item()
    measured = json.loads((ROOT / "results" / "quickstart-digits" / "autoattack.json").read_text())
    assert correct == measured["clean_accuracy"] == 99
