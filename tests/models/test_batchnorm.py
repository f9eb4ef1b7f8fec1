"""A second set of BatchNorm layers, and the Swish network against a plain computation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models import create_model
from models.batchnorm import SynchronisedBatchNorm2d, synchronise_batch_norm
from models.batchnorm_sets import add_second_batchnorms, second_batchnorms
from models.checkpoint import find_weights
from models.fold import Folded
from models.weights import infer_architecture
from tests.helpers import new_tiny_net
from utils.distributed import ProcessGroup
from utils.errors import UserError


def test_the_second_set_is_used_within_its_context_alone():
    net = new_tiny_net(4, 1)
    plain = net.state_dict()
    folded = Folded(net.eval())
    add_second_batchnorms(net)
    with torch.no_grad():
        net.bn1.auto.running_mean.fill_(0.3)
        net.bn2.auto.bias.fill_(0.2)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    other = new_tiny_net(4, 1)
    other.load_state_dict({**plain, **{k.replace("auto.", ""): v for k, v in net.state_dict().items() if "auto" in k}})
    first, second = net(x), other.eval()(x)
    assert not torch.allclose(first, second)
    with second_batchnorms(net):
        torch.testing.assert_close(net(x), second)
        folded.refresh()
        torch.testing.assert_close(folded(x), second)  # the folded network follows
        net.train()(x)
    assert torch.equal(net.eval()(x), first)
    assert [net.bn1.num_batches_tracked, net.bn1.auto.num_batches_tracked] == [0, 1]
    assert find_weights(net.state_dict(), "net.pt").state.keys() == plain.keys()


def test_swish_wideresnet():
    """Normalised inside; a strided convolution sees zeros on the right and below; the logits start at 0."""
    net = create_model("wrn-10-2-swish", 10).double().eval()
    x = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    assert not net(x).any()
    torch.nn.init.normal_(net.logits.weight)
    mean, std = (
        torch.tensor(v).double().view(1, 3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    )
    swish = lambda v: v * v.sigmoid()  # noqa: E731
    out = net.init_conv((x - mean) / std)
    for i, group in enumerate(net.layer):
        (block,) = group.block
        active = swish(block.batchnorm_0(out))
        stride = 2 if i else 1
        padded = F.pad(active, (0, 1, 0, 1)) if i else F.pad(active, (1, 1, 1, 1))
        inner = swish(block.batchnorm_1(F.conv2d(padded, block.conv_0.weight, stride=stride)))
        shortcut = F.conv2d(active, block.shortcut.weight, stride=stride)
        out = shortcut + F.conv2d(F.pad(inner, (1, 1, 1, 1)), block.conv_1.weight)
    expected = net.logits(swish(net.batchnorm(out)).mean((2, 3)))
    torch.testing.assert_close(net(x), expected, rtol=1e-6, atol=1e-6)  # the constants are float32
    assert infer_architecture(net.state_dict()) == ("wrn-10-2-swish", 10)
    assert infer_architecture(create_model("resnet50", 100).state_dict()) == ("resnet50", 100)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4, affine=False),
        nn.BatchNorm2d(4, momentum=None),
        nn.BatchNorm2d(4, track_running_stats=False),
    ],
    ids=str,
)
def test_a_batchnorm_that_cannot_be_synchronised_is_named(layer):
    net = nn.Sequential(nn.BatchNorm2d(4), layer)
    with pytest.raises(UserError, match=r"^1 \(BatchNorm.*add --batch-norm local"):
        synchronise_batch_norm(net, ProcessGroup())
    assert type(net[0]) is SynchronisedBatchNorm2d
    synchronise_batch_norm(net[:1], ProcessGroup())  # once more is no other kind
