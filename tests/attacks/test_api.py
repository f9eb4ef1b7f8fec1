"""``attacks.pgd`` on any network."""

import pytest
import torch
from torch.nn import functional as F

import attacks
from tests.helpers import digits, trained
from utils.errors import UserError


def test_it_is_projected_gradient_ascent():
    x, y = digits(6)
    model, expected = trained("tiny-robust"), x.clone()
    for _ in range(5):
        expected.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(expected), y, reduction="sum"), expected)
        expected = (expected.detach() + 0.02 * gradient.sign()).clamp(x - 0.05, x + 0.05).clamp(0, 1)
    x_adv = attacks.pgd(model, x, y, 0.05, steps=5, step_size=0.02, start="clean")
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", "8/255"), ("l2", 1.5)])
def test_it_stays_in_the_ball_and_repeats_with_its_seed(norm, epsilon):
    x, y = digits(6)
    model = trained("tiny-robust").train().requires_grad_(True)
    first, again, other = (attacks.pgd(model, x, y, epsilon, norm, steps=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other) and not first.requires_grad
    sizes = (first - x).flatten(1).norm(dim=1, p=float("inf") if norm == "linf" else 2)
    assert sizes.max() <= (8 / 255 if norm == "linf" else 1.5) + 1e-6 and first.min() >= 0 and first.max() <= 1
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_wrong_arguments_are_named():
    x, y = digits(3)
    model = trained("tiny-robust")
    for error, sentence, arguments in (
        (ValueError, r"x must be \(B, C, H, W\)", {"x": x[0]}),
        (ValueError, r"x must be in \[0, 1\]", {"x": 2 * x}),
        (ValueError, "start 'zero': choose", {"start": "zero"}),
        (UserError, "norm 'l1': choose linf or l2", {"norm": "l1"}),
        (UserError, "0 steps: an attack needs at least 1", {"steps": 0}),
        (UserError, "epsilon '-1' is not a number of 0 or more", {"epsilon": -1}),
    ):
        with pytest.raises(error, match=sentence):
            attacks.pgd(model, **{"x": x, "y": y, "epsilon": 0.1, **arguments})
