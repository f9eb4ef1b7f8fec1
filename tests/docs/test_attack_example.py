"""The attack that docs/methods.md gives as an example, in a method that names it."""

import re

import pytest
import torch

from attacks.pgd import AttackSpec, cross_entropy_per_image, frozen, perturb, pgd_step
from engine.steps import STEPS, create_step
from losses.fat import FAT
from losses.madry import AT
from losses.trades import TRADES
from tests.helpers import ROOT, new_tiny_net
from utils.errors import UserError

(CODE,) = re.findall(
    r"<!-- example:attack -->\n```python\n(.*?)```\n<!-- /example -->",
    (ROOT / "docs/methods.md").read_text(),
    flags=re.DOTALL,
)


@pytest.fixture
def make(monkeypatch):
    names = {}
    exec(CODE, names)
    monkeypatch.setitem(STEPS, "cosine", names["CosineStep"])

    def step(method, num_steps):
        objective = type("Mine", (method,), {"step": "cosine"})()
        net = new_tiny_net(4, 1).double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        return create_step(net, None, objective, optimizer, AttackSpec(0.03, 0.01, num_steps))

    return step


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 8, 8, generator=generator, dtype=torch.float64), torch.arange(6) % 4


@pytest.mark.parametrize("method", [AT, TRADES])
def test_one_step_is_that_of_pgd_at_the_present_weights(make, method):
    step, (x, y) = make(method, 1), batch()
    for i in range(3):
        net, seed = step.student.model, torch.Generator().manual_seed(i)
        starts = step.draw_starts([x], seed)
        with frozen(net):
            expected = perturb(net, x, y, step.objective.inner, step.attack, start=starts[0])
        step([x], y, torch.Generator().manual_seed(i))
        torch.testing.assert_close(step.x_adv[0], expected, atol=1e-12, rtol=0)


def test_the_steps_become_smaller(make):
    step, (x, y) = make(AT, 2), batch()
    (start,) = step.draw_starts([x], torch.Generator().manual_seed(0))
    expected = start
    with frozen(step.student.model) as net:
        for size in (0.01, 0.005):  # (1 + cos 0) / 2 and (1 + cos 90 degrees) / 2
            leaf = expected.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(cross_entropy_per_image(net(leaf), None, y).sum(), leaf)
            expected = pgd_step(leaf.detach(), gradient, x, AttackSpec(0.03, size, 1))
    step([x], y, torch.Generator().manual_seed(0))
    torch.testing.assert_close(step.x_adv[0], expected, atol=1e-12, rtol=0)


def test_what_it_does_not_use_is_refused(make):
    with pytest.raises(UserError, match=r"Mine\.moves has no effect in the step 'cosine'"):
        make(FAT, 1)
