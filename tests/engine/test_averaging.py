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
