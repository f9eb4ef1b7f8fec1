"""What the time of a step by several processes is predicted from."""

import pytest
import torch

from benchmarks.exchange import ATTACK, Measured, Timed, lbgat_exchanges, predict
from benchmarks.processes import together
from engine.steps import create_step
from losses import create_objective
from models import create_model


def test_prediction_in_closed_form():
    m = Measured(image_seconds=0.5, parallel=2, exchanges=10, exchanged_bytes=800, latency=0.125, bandwidth=100.0)
    assert predict(m, 1, 64) == (32.0, 0.0)
    # 32 images each; 10 exchanges at 0.125 s; 2 * 1/2 * 800 bytes at 100 a second.
    assert predict(m, 2, 64) == pytest.approx((16 + 1.25 + 8, 9.25 / 25.25))
    # Four processes on two cores take turns, at twice the logarithm.
    assert predict(m, 4, 64)[0] == pytest.approx(16 + 10 * 0.125 * 2 * 2 + 12)
    assert predict(m, 2, 65)[0] - predict(m, 2, 64)[0] == pytest.approx(0.5)  # the fullest process counts


@pytest.mark.parametrize("batch_norm", ["synchronised", "local"])
def test_exchanges_of_a_step_are_counted(tmp_path, batch_norm):
    """By theory and in a step; but for the vote on stopping (theory) and the logits and statistics (step)."""

    def main(group):
        group.__class__ = Timed
        nets = [create_model("wrn-10-1", 10) for _ in range(2)]
        optimizer = torch.optim.SGD([p for net in nets for p in net.parameters()], lr=0.1)
        objective = create_objective("lbgat", beta=6.0)
        step = create_step(*nets, objective, optimizer, ATTACK, group=group, batch_norm=batch_norm)
        step([torch.rand(4, 3, 8, 8)], torch.zeros(4, dtype=torch.int64))
        exchanges, size = lbgat_exchanges("wrn-10-1", "wrn-10-1", 10, batch_norm == "synchronised")
        assert group.count == exchanges - 1 + (batch_norm == "local")
        logits = 3 * 4 * 10 * 4
        if batch_norm == "synchronised":
            assert group.size_of_all == size + logits

    assert together(main, tmp_path, 2) == ([0, 0], "")
