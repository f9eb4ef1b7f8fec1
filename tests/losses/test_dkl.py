"""DKL, IKL, GKL, MART: identities, closed forms, slow references; the class prior."""

import math

import pytest
import torch
from torch import nn

from attacks.pgd import AttackSpec
from engine.steps import create_step
from losses import METHODS, create_objective
from losses.base import kl_per_image
from losses.dkl import DKL, soft_cross_entropy, weighted_mse
from losses.madry import AT
from losses.mart import MART
from losses.natural import Natural
from losses.trades import TRADES
from tests.helpers import objective, run_step

B, C = 6, 5
VALUES = {"alpha": 4.0, "beta": 6.0, "gamma": 0.4, "temperature": 2.0, "num_classes": C}


def double(*shape, scale=2.0):
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def labels():
    return torch.tensor([0, 3, 1, 1, 2, 3])


def random_prior():
    return torch.rand(C, C, dtype=torch.float64).softmax(1)


def with_prior(method, **changes):
    chosen = objective(method, **{**VALUES, **changes}).double()
    chosen.prior.copy_(random_prior())
    return chosen


def slow_weighted_mse(d, w):
    values = []
    for row, weights in zip(d.tolist(), w.tolist(), strict=True):
        pairs = [(j, k) for j in range(C) for k in range(C)]
        values.append(sum(weights[j] * weights[k] * (row[j] - row[k]) ** 2 for j, k in pairs) / 4)
    return values


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_linear_form_equals_quadratic_form(offset):
    d, w = double(B, C).detach(), torch.rand(B, C, dtype=torch.float64)
    expected = slow_weighted_mse(d, w)
    assert weighted_mse(d + offset, w).tolist() == pytest.approx(expected, rel=1e-12 if offset == 0 else 1e-8)
    assert (weighted_mse((d + offset).float(), w.float()) >= 0).all()


def test_linear_form_has_the_gradient_of_the_quadratic_form():
    d, w = double(B, C), torch.rand(B, C, dtype=torch.float64)
    pairs = w[:, :, None] * w[:, None, :] * (d[:, :, None] - d[:, None, :]) ** 2
    (expected,) = torch.autograd.grad(pairs.sum() / 4, d)
    (actual,) = torch.autograd.grad(weighted_mse(d, w).sum(), d)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_dkl_are_those_of_kl():
    nat, adv = double(B, C), double(B, C)
    dkl = create_objective("dkl", alpha=1.0, beta=1.0)
    terms = dkl.outer({"nat": nat, "adv": adv}, labels())
    actual = torch.autograd.grad(terms["wmse"] + terms["soft_ce"], (nat, adv))
    expected = torch.autograd.grad(kl_per_image(nat, adv).mean(), (nat, adv))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    (attack,) = torch.autograd.grad(dkl.inner(adv, nat.detach(), labels()).mean(), adv)
    torch.testing.assert_close(attack, expected[1], rtol=0, atol=1e-12)


def test_a_trades_step_is_a_dkl_step():
    """alpha = beta = 6, and the BatchNorm passes do not matter in one step of a net without BatchNorm."""
    weights = []
    for method in ("trades", "dkl"):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, C)).double()
        step = create_step(
            net,
            None,
            objective(method, alpha=6.0, beta=6.0),
            torch.optim.SGD(net.parameters(), lr=0.1),
            AttackSpec(0.1, 0.03, 4),
        )
        x = torch.rand(B, 3, 2, 2, dtype=torch.float64)
        for i in range(3):
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).double()
            run_step(step, [x], labels(), [x + 0.001 * noise])
        weights.append([p.detach().clone() for p in net.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gkl_with_gamma_1_and_a_batch_constant_prior_is_ikl():
    nat, adv, y = double(B, C), double(B, C), torch.full((B,), 2)
    terms = [with_prior(method, gamma=1.0) for method in ("ikl", "gkl")]
    terms[1].prior.copy_(terms[0].prior)
    values = [sum(each.outer({"nat": nat, "adv": adv}, y).values()) for each in terms]
    assert values[1].item() == pytest.approx(values[0].item(), rel=1e-13)
    for a, b in zip(*(torch.autograd.grad(v, (nat, adv)) for v in values), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_gkl_terms(gamma):
    nat, adv, y = double(B, C).detach(), double(B, C).detach(), labels()
    objective = with_prior("gkl", gamma=gamma)
    w = objective.prior[y] ** gamma
    expected = 6 * sum(slow_weighted_mse(nat - adv, w)) / sum(sum(row) ** 2 for row in w.tolist())
    assert objective.outer({"nat": nat, "adv": adv}, y)["wmse"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("attack_beta", [0.0, 1.0])
@pytest.mark.parametrize("method", ["ikl", "gkl"])
def test_the_attack_of_ikl(method, attack_beta):
    """alpha 1, beta 1 or 0, gamma 1, the current prior."""
    nat, adv, y = double(B, C).detach(), double(B, C).detach(), labels()
    objective = with_prior(method, attack_beta=attack_beta)
    wmse = slow_weighted_mse(nat - adv, objective.prior[y])
    p, q = nat.softmax(1), adv.softmax(1)
    expected = [attack_beta * m - (a * b.log()).sum().item() for m, a, b in zip(wmse, p, q, strict=True)]
    assert objective.inner(adv, nat, y).tolist() == pytest.approx(expected, rel=1e-12)


def test_mart_terms():
    nat, adv, y = double(B, C).detach(), double(B, C).detach(), labels()
    expected = {"ce": 0.0, "margin": 0.0, "kl": 0.0}
    for p, q, label in zip(nat.softmax(1).tolist(), adv.softmax(1).tolist(), y.tolist(), strict=True):
        expected["ce"] -= math.log(q[label]) / B
        expected["margin"] -= math.log(1.0001 - max(q[k] for k in range(C) if k != label) + 1e-12) / B
        kl = sum(a * (math.log(a) - math.log(b + 1e-12)) for a, b in zip(p, q, strict=True))
        expected["kl"] += 6 * kl * (1.0000001 - p[label]) / B
    terms = create_objective("mart", beta=6.0).outer({"nat": nat, "adv": adv}, y)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-12)


def test_mart_is_finite_where_the_student_is_certain():
    certain = 200 * torch.eye(C)[labels()]
    nat, adv = certain.clone().requires_grad_(), certain.roll(1, 1).requires_grad_()
    loss = sum(create_objective("mart", beta=6.0).outer({"nat": nat, "adv": adv}, labels()).values())
    assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, (nat, adv)))


def test_gradcheck():
    """Where nothing is detached; in DKL, IKL and GKL the CE stops the gradient of p(x): x' alone, and the wMSE."""
    y = labels()
    mart = create_objective("mart", beta=6.0)
    ikl, gkl = with_prior("ikl"), with_prior("gkl")

    def total(objective, nat, adv):
        return sum(objective.outer({"nat": nat, "adv": adv}, y).values())

    nat, adv = double(B, C), double(B, C)
    assert torch.autograd.gradcheck(lambda n, a: total(mart, n, a), (nat, adv))
    assert torch.autograd.gradcheck(weighted_mse, (nat, torch.rand(B, C, dtype=torch.float64).requires_grad_()))
    for each in (ikl, gkl):
        assert torch.autograd.gradcheck(lambda n, a, o=each: o.wmse(n, a, y), (nat, adv))
        assert torch.autograd.gradcheck(lambda a, o=each: total(o, nat.detach(), a), (adv,))
        assert torch.autograd.gradcheck(lambda a, o=each: o.inner(a, nat.detach(), y), (adv,))
    assert torch.autograd.gradcheck(lambda a: soft_cross_entropy(nat, a), (adv,))


@pytest.mark.parametrize(
    "method", sorted(METHODS.keys() - {"score", "dajat"})
)  # which define their own smoothed labels
def test_label_smoothing_is_of_the_cross_entropy_alone(method):
    logits = {name: double(B, C).detach() for name in ("adv", "nat", "guide", "far", "helper", "frozen")}
    plain, smooth = (objective(method, label_smoothing=s, **VALUES).outer(logits, labels()) for s in (0.0, 0.1))
    on_adversarial = issubclass(METHODS[method], (AT, MART))
    guided = "guide_ce" in plain
    on_clean = issubclass(METHODS[method], (TRADES, DKL, Natural))
    which = ["guide"] if guided else ["adv"] if on_adversarial else ["nat"] if on_clean else ["nat", "adv"]
    ce = "guide_ce" if guided else "ce"
    assert all(smooth[name].item() == plain[name].item() for name in plain if name != ce)
    if ce not in plain:
        return
    expected = [0.9 * plain[ce].item() - 0.1 * logits[name].log_softmax(1).mean().item() for name in which]
    assert any(smooth[ce].item() == pytest.approx(value, rel=1e-6) for value in expected)


def test_class_prior_is_the_mean_prediction_of_the_last_epoch():
    ikl = objective("ikl", **VALUES).double()
    assert torch.equal(ikl.prior, torch.full((C, C), 1 / C))
    batches = [(double(B, C).detach(), labels()) for _ in range(3)]
    for nat, y in batches:
        before = ikl.prior.clone()
        ikl.after_step({"nat": nat, "adv": double(B, C)}, y)
        assert torch.equal(ikl.prior, before)  # it changes between epochs alone
    ikl.end_epoch()
    for label in range(C):
        rows = [(row / 2.0).softmax(0) for nat, y in batches for row, k in zip(nat, y, strict=True) if k == label]
        expected = torch.stack(rows).mean(0) if rows else torch.full((C,), 1 / C, dtype=torch.float64)
        torch.testing.assert_close(ikl.prior[label], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(ikl.prior.sum(1), torch.ones(C).double(), rtol=1e-6, atol=0)
    assert not ikl.prior_sums.any()
    kept = ikl.prior.clone()
    ikl.end_epoch()  # an epoch without any image
    assert torch.equal(ikl.prior, kept)
