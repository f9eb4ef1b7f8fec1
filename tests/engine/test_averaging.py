"""Averages of weights against their closed form."""

import copy

import torch

from engine.averaging import WeightAverage
from models.accelerate import NO_ACCELERATION, AcceleratedModel
from tests.helpers import new_tiny_net


def test_average_equals_its_closed_form():
    net = new_tiny_net(4, 1)
    average = WeightAverage(AcceleratedModel(net, NO_ACCELERATION), tau=0.9)
    history = []
    for k in range(1, 6):
        with torch.no_grad():
            for tensor in net.state_dict().values():
                tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else torch.tensor(7 * k))
        history.append(copy.deepcopy(net.state_dict()))
        average.update(net.state_dict())
        for name, tensor in average.model.state_dict().items():
            if tensor.is_floating_point():  # BatchNorm statistics included
                expected = 0.9 ** (k - 1) * history[0][name]
                expected = expected + sum(0.1 * 0.9 ** (k - i) * history[i - 1][name] for i in range(2, k + 1))
                torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=1e-12)
            else:
                assert tensor == 7 * k
    assert all(torch.equal(tensor, history[-1][name]) for name, tensor in net.state_dict().items())


def test_warm_up_copies_and_the_ramp_forgets_the_start():
    """Update k: a copy up to the warm-up and, without a ramp, once more, which begins the average; with a ramp
    min(tau, (1 + k - W) / (10 + k - W)), and statistics are the student's."""
    net = new_tiny_net(4, 1)
    network = AcceleratedModel(net, NO_ACCELERATION)
    plain, ramp = WeightAverage(network, 0.5, warmup=3), WeightAverage(network, 0.5, warmup=2.5, ramp=True)
    expected = {}
    for k in range(1, 7):
        with torch.no_grad():
            for tensor in net.state_dict().values():
                tensor.copy_(torch.rand(tensor.shape) if tensor.is_floating_point() else torch.tensor(7 * k))
        w = net.state_dict()["conv1.weight"].clone()
        taus = {"plain": 0.5 if k > 4 else 0.0, "ramp": min(0.5, (k - 1.5) / (k + 7.5)) if k > 2.5 else 0.0}
        for name, average in (("plain", plain), ("ramp", ramp)):
            average.update(net.state_dict())
            expected[name] = taus[name] * expected.get(name, 0.0) + (1 - taus[name]) * w
            torch.testing.assert_close(average.model.state_dict()["conv1.weight"], expected[name])
    same = [torch.equal(a.model.state_dict()["bn1.running_mean"], net.bn1.running_mean) for a in (plain, ramp)]
    assert same == [False, True]
