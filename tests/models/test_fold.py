"""A folded network computes what the network computes in eval mode."""

import pytest
import torch
from torch import nn

from models import create_model
from models.fold import Folded


@pytest.mark.parametrize("name", ["wrn-16-2", "resnet18-guide", "preactresnet18"])
def test_folding_is_exact_and_follows_the_weights(name):
    model = create_model(name, 10).double()
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    folded = Folded(model.eval())
    model.train()
    model(3 * x)  # moves every running statistic
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.eval()
    folded.refresh()
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)


def test_what_is_folded():
    """In a pre-activation block conv1-bn2 folds and bn1, which follows an addition, does not."""
    counts = {"wrn-10-1": 3, "wrn-16-2": 6 + 1, "resnet18": 20, "preactresnet18": 8}
    # wrn-16-2: the stem widens, so block1.layer.0.bn1 is the stem's only reader and folds as well
    for name, expected in counts.items():
        assert sum(isinstance(m, torch.nn.Identity) for m in Folded(create_model(name, 10)).module.modules()) == 0
        assert len(Folded(create_model(name, 10))._pairs) == expected


@pytest.mark.parametrize(
    ("norm", "num_folded"),
    [({}, 1), ({"affine": False}, 1), ({"track_running_stats": False}, 0)],
    ids=str,
)
@pytest.mark.parametrize("conv", [{}, {"padding_mode": "reflect"}, {"bias": False, "groups": 2}], ids=str)
def test_layers_of_other_networks(norm, num_folded, conv):
    """A convolution that pads in another way is kept, and a BatchNorm without statistics is not folded."""
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, **conv), nn.BatchNorm2d(6, **norm), nn.ReLU()).double()
    x = torch.rand(3, 4, 8, 8, dtype=torch.float64)
    model(x)
    folded = Folded(model.eval())
    assert len(folded._pairs) == (0 if "padding_mode" in conv else num_folded)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.drop = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)

    def forward(self, x):
        out = nn.functional.dropout(self.bn(self.conv(x)), 0.5, training=self.training)
        return self.drop(out).mean((2, 3))


def test_dropout_is_off_whatever_mode_the_network_is_traced_in():
    model, x = Dropping().train(), torch.rand(2, 3, 8, 8)
    model.drop.eval()
    folded = Folded(model)
    assert model.training and not model.drop.training
    torch.testing.assert_close(folded(x), model.eval()(x))


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet18", "preactresnet18"])
def test_mixed_precision_leaves_out_the_first_and_the_last_layer(name):
    """Else images 0.001 apart, as at the start of an attack, would mostly be equal, and so their logits."""
    folded = Folded(create_model(name, 10).eval())
    kinds = {}

    def note(module, args, output):
        kinds.setdefault(type(module), []).append((args[0].dtype, output.dtype))

    for module in folded.module.modules():
        if type(module) in (nn.Conv2d, nn.Linear):
            module.register_forward_hook(note)
    with torch.autocast("cpu", torch.bfloat16):
        logits = folded(torch.rand(2, 3, 32, 32))
    assert kinds[nn.Conv2d][0] == kinds[nn.Linear][-1] == (torch.float32, torch.float32)
    assert {out for _, out in kinds[nn.Conv2d][1:]} == {torch.bfloat16} and logits.dtype == torch.float32
