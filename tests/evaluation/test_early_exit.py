"""Broken images are no longer queried, and no verdict changes by it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.autoattack import early_exit
from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.early_exit import AllImagesBroken, EarlyExit
from tests.helpers import attacked, digits, short_package, short_run, suite, trained


def everywhere(images):
    return torch.ones(len(images), dtype=torch.bool)


def linear():
    """A linear network without a bias towards any class, and images with its predictions."""
    network = nn.Linear(768, 10)
    network.weight.data -= network.weight.mean(1, keepdim=True).detach()
    x = torch.rand(6, 3, 16, 16)
    return nn.Sequential(nn.Flatten(), network), x, network(x.flatten(1)).argmax(1)


def gradient(model, x):
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    weights = torch.linspace(-1, 1, logits.numel()).view_as(logits)
    return logits.detach(), torch.autograd.grad((weights * logits).sum(), leaf)[0]


def test_broken_images_are_skipped():
    """Images 1 and 3 are moved to the places of others, where they are wrong; in the end all are."""
    network, x, y = linear()
    model = AttackedModel(network)
    wrong = torch.stack([x[(y != label).nonzero()[0, 0]] for label in y])
    points = x.clone()
    points[[1, 3]] = wrong[[1, 3]]
    with model.during_attack(x, y, everywhere) as run:
        first, _ = gradient(model, points)
        assert run.done.tolist() == [False, True, False, True, False, False]
        assert run.active.tolist() == [0, 2, 4, 5]
        torch.testing.assert_close(run.x_adv, points)
        logits, grad = gradient(model, x)
        torch.testing.assert_close(logits[[1, 3]], first[[1, 3]])  # they keep their last logits
        assert not grad[[1, 3]].any() and grad[[0, 2, 4, 5]].flatten(1).any(1).all()
        with torch.no_grad():
            model(wrong)
        assert run.done.all() and model.num_forwarded == 6 + 4 + 4
        torch.testing.assert_close(run.x_adv, wrong)
        with pytest.raises(AllImagesBroken):
            model(x)
    assert torch.equal(model(x).argmax(1), y)  # after the attack


def test_only_valid_points_count():
    network, x, y = linear()

    def third(images):
        return torch.arange(6) == 2

    for exits_early, expected in ((True, [False, False, True, False, False, False]), (False, [False] * 6)):
        model = AttackedModel(network, early_exit=exits_early)
        with model.during_attack(x, (y + 1) % 10, third) as run:
            model(x)
        assert run.done.tolist() == expected


def test_rounding_breaks_no_image():
    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([[1.0, 1 + 5e-5], [1.0, 1 + 2e-4]]) + 0 * x.flatten(1)[:, :1]

    model = AttackedModel(Fixed(), fold=False)
    x, y = torch.rand(2, 3, 4, 4), torch.zeros(2, dtype=torch.long)
    with model.during_attack(x, y, everywhere) as run:
        model(x)
    assert run.done.tolist() == [False, True]


def test_the_first_adversarial_example_is_kept():
    x, y = torch.zeros(2, 3, 2, 2), torch.zeros(2, dtype=torch.long)
    run = EarlyExit(x, y, everywhere)
    wrong = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    run.update(x + 0.1, wrong.flip(1) * torch.tensor([[1.0], [-1.0]]))  # image 1 alone is wrong
    run.update(x + 0.2, wrong)
    assert run.x_adv.flatten(1)[:, 0].tolist() == pytest.approx([0.2, 0.1])


def test_fab_is_not_judged_at_its_gradient_queries():
    """FAB takes predictions from its queries without gradient only."""
    x = torch.rand(4, 3, 8, 8)
    assert early_exit._in_ball(x, "Linf", 1.0, x.clone()).all()
    assert not early_exit._in_ball(x, "Linf", 1.0, x.clone().requires_grad_()).any()


def test_the_ball_is_the_norms():
    x = torch.zeros(2, 3, 2, 2)
    images = torch.stack([x[0] + 0.1, x[1] + 0.2])
    assert early_exit._in_ball(x, "Linf", 0.15, images).tolist() == [True, False]
    assert early_exit._in_ball(x, "L2", 0.5, images).tolist() == [True, False]  # 0.35 and 0.69


@pytest.mark.parametrize("attack, norm, epsilon", [("fab-t", "linf", 0.1), ("fab", "l2", 0.7)])
def test_broken_images_leave_fabs_other_verdicts_alone(attack, norm, epsilon):
    """Their gradients are zero, so that FAB divides by zero there."""
    x, y = digits(12)
    network = trained("tiny-robust")
    chosen = suite(norm, epsilon, (attack,), "custom", 100, short_package())
    x_adv, prediction = short_run(network, chosen, x, y)
    model, to_the_end = AttackedModel(network), AttackedModel(network, early_exit=False)
    ours = attacked(model, chosen, x, y)
    attacked(to_the_end, chosen, x, y)
    np.testing.assert_array_equal(ours["broken_by"] == "", prediction == y)
    failed = ours["broken_by"] != attack
    assert 0 < failed.sum() < 12
    np.testing.assert_array_equal(ours["x_adv"][failed], x_adv[failed.nonzero()])
    assert np.isfinite(ours["x_adv"]).all()
    assert model.num_forwarded < to_the_end.num_forwarded


def test_an_attack_ends_when_every_image_is_broken():
    x, y = digits(20)
    network = trained("tiny-natural")
    correct = network(x).argmax(1) == y
    model = AttackedModel(network)
    chosen = suite("linf", 0.5, ("apgd-ce", "apgd-t", "fab", "fab-t", "apgd-dlr"), "custom", 100, short_package())
    for attack in chosen.attacks:
        before = model.num_forwarded
        x_adv, prediction = chosen.run(chosen.start(model), attack, x[correct], y[correct])
        assert (prediction != y[correct]).all() and (model(x_adv).argmax(1) == prediction).all()
        if attack.startswith("apgd"):
            assert model.num_forwarded - before < 10 * correct.sum()  # of 50 iterations and more


def test_an_attack_knows_no_network_but_the_one_it_is_patched_with():
    """``patch_attacks`` needs nothing of the front end but its four attacks."""
    calls = []

    class Attack:
        eot_iter, targeted, norm, eps = 1, True, "Linf", 0.1

        def attack_single_run(self, x, y):
            calls.append("run")
            return x, torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x)), x

        def margin_and_loss(self, x, y):
            calls.append("margin")
            return x, y

    front_end = SimpleNamespace(apgd=Attack(), apgd_targeted=Attack(), fab=Attack(), square=Attack())
    network, x, y = linear()
    early_exit.patch_attacks(front_end, AttackedModel(network))
    front_end.apgd.attack_single_run(x, y), front_end.square.margin_and_loss(x, y)
    assert calls == ["run", "margin"]
