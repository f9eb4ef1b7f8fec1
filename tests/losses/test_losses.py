"""The methods' terms and attack values against slow obvious sums, in float64."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from attacks.pgd import AttackSpec
from engine.steps import create_step
from losses import METHODS, create_objective
from losses.base import kl_per_image
from tests.helpers import objective, run_step
from utils.errors import UserError

B, C = 5, 4


@pytest.fixture
def logits():
    """Logits (B, C) of each pass and labels."""
    generator = torch.Generator().manual_seed(11)
    passes = {name: 2 * torch.randn(B, C, generator=generator, dtype=torch.float64) for name in ("adv", "nat", "guide")}
    return passes, torch.tensor([0, 3, 1, 1, 2])


def softmax(row):
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def slow_ce(logits, y):
    return [-math.log(softmax(row)[label]) for row, label in zip(logits.tolist(), y.tolist(), strict=True)]


def slow_kl(nat, adv):
    values = []
    for nat_row, adv_row in zip(nat.tolist(), adv.tolist(), strict=True):
        p, q = softmax(nat_row), softmax(adv_row)
        values.append(sum(p[k] * math.log(p[k] / q[k]) for k in range(C)))
    return values


def slow_mse(a, b):
    return sum((u - v) ** 2 for ra, rb in zip(a.tolist(), b.tolist(), strict=True) for u, v in zip(ra, rb, strict=True))


def mean(values):
    return sum(values) / len(values)


def floats(terms):
    return {name: term.item() for name, term in terms.items()}


@pytest.mark.parametrize("beta", [0.0, 0.5, 6.0])
def test_lbgat_terms(logits, beta):
    passes, y = logits
    expected = {
        "mse": slow_mse(passes["adv"], passes["guide"]) / (B * C),
        "guide_ce": mean(slow_ce(passes["guide"], y)),
    }
    if beta:
        expected["kl"] = beta * mean(slow_kl(passes["nat"], passes["adv"]))
    assert floats(create_objective("lbgat", beta=beta).outer(passes, y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_the_variants_of_lbgat_change_one_part(logits, beta):
    passes, y = logits
    mse, ce = slow_mse(passes["adv"], passes["guide"]) / (B * C), mean(slow_ce(passes["guide"], y))
    kl = {"kl": beta * mean(slow_kl(passes["nat"], passes["adv"]))} if beta else {}
    soft = mean(slow_kl(passes["guide"] / 3, passes["adv"] / 3))
    frozen = {"adv": passes["adv"], "nat": passes["nat"], "frozen": passes["guide"]}
    for method, values, given, expected in (
        ("lbgat", {"beta": beta, "mse_weight": 0.3}, passes, {"mse": 0.3 * mse, "guide_ce": ce, **kl}),
        ("lbgat-kl", {"beta": beta, "temperature": 3.0, "kd_weight": 0.5}, passes,
         {"kd": 0.5 * 9 * soft, "guide_ce": ce, **kl}),
        ("lbgat-frozen", {"beta": beta, "mse_weight": 2.0}, frozen, {"mse": 2 * mse, **kl}),
        ("lbgat-no-clean", {}, {"adv": passes["adv"], "guide": passes["guide"]}, {"mse": mse, "guide_ce": ce}),
    ):  # fmt: skip
        assert floats(create_objective(method, **values).outer(given, y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_terms(logits, beta):
    passes, y = logits
    expected = {"ce": mean(slow_ce(passes["nat"], y)), "kl": beta * mean(slow_kl(passes["nat"], passes["adv"]))}
    assert floats(create_objective("trades", beta=beta).outer(passes, y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("method", "which"), [("at", "adv"), ("natural", "nat")])
def test_cross_entropy_methods(logits, method, which):
    passes, y = logits
    terms = create_objective(method).outer({which: passes[which]}, y)
    assert floats(terms) == pytest.approx({"ce": mean(slow_ce(passes[which], y))}, rel=1e-12)


@pytest.mark.parametrize(("method", "value"), [("lbgat", slow_kl), ("trades", slow_kl), ("at", None)])
def test_what_the_attack_maximises(logits, method, value):
    passes, y = logits
    chosen = objective(method, beta=6.0)
    assert chosen.inner_uses_clean == (value is not None)
    nat = passes["nat"] if chosen.inner_uses_clean else None
    expected = value(passes["nat"], passes["adv"]) if value else slow_ce(passes["adv"], y)
    result = chosen.inner(passes["adv"], nat, y)
    assert result.shape == (B,)
    assert result.tolist() == pytest.approx(expected, rel=1e-12)


def test_kl_is_zero_of_equal_logits_and_finite_of_certain_ones():
    logits = torch.tensor([[0.0, 1.0, -2.0], [900.0, 0.0, -900.0]])
    assert kl_per_image(logits, logits).tolist() == [0.0, 0.0]
    assert kl_per_image(logits[1:], -logits[1:]).item() == pytest.approx(1800.0)


def gradients(terms, passes, names):
    return dict(
        zip(names, torch.autograd.grad(sum(terms.values()), [passes[n] for n in names], allow_unused=True), strict=True)
    )


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_lbgat_detaches_nothing(logits, beta):
    """Closed-form gradients: the MSE moves the guide too, the KL moves both of its sides."""
    passes, y = logits
    passes = {name: value.requires_grad_() for name, value in passes.items()}
    actual = gradients(create_objective("lbgat", beta=beta).outer(passes, y), passes, ("adv", "nat", "guide"))
    adv, nat, guide = (passes[name].detach() for name in ("adv", "nat", "guide"))
    p, q = nat.softmax(1), adv.softmax(1)
    apart = 2 * (adv - guide) / (B * C)
    torch.testing.assert_close(actual["adv"], apart + beta * (q - p) / B, rtol=1e-10, atol=1e-12)
    certain = (guide.softmax(1) - torch.eye(C, dtype=torch.float64)[y]) / B
    torch.testing.assert_close(actual["guide"], certain - apart, rtol=1e-10, atol=1e-12)
    if beta:
        ratio = p.log() - q.log()
        expected = beta * p * (ratio - (p * ratio).sum(1, keepdim=True)) / B
        torch.testing.assert_close(actual["nat"], expected, rtol=1e-10, atol=1e-12)
    else:
        assert actual["nat"] is None  # f(x) is run for its statistics alone


def test_trades_detaches_nothing(logits):
    passes, y = logits
    passes = {name: passes[name].requires_grad_() for name in ("adv", "nat")}
    actual = gradients(create_objective("trades", beta=6.0).outer(passes, y), passes, ("adv", "nat"))
    p, q = passes["nat"].detach().softmax(1), passes["adv"].detach().softmax(1)
    torch.testing.assert_close(actual["adv"], 6 * (q - p) / B, rtol=1e-10, atol=1e-12)
    ratio = p.log() - q.log()
    kl = 6 * p * (ratio - (p * ratio).sum(1, keepdim=True)) / B
    certain = (p - torch.eye(C, dtype=torch.float64)[y]) / B
    torch.testing.assert_close(actual["nat"], certain + kl, rtol=1e-10, atol=1e-12)


class Small(nn.Module):
    """A small classifier with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, C)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


def recorded(who, notes):
    """A classifier that notes each train-mode pass: who, on which images, with or without gradient."""
    model = Small()

    def note(module, inputs):
        if module.training:
            notes.append((who, inputs[0], torch.is_grad_enabled()))

    model.register_forward_pre_hook(note)
    return model


@pytest.mark.parametrize(
    ("method", "beta", "expected"),
    [
        # f(x) runs even at beta 0, where only its BatchNorm statistics count.
        ("lbgat", 0.0, [("student", "adv", True), ("student", "nat", False), ("guide", "nat", True)]),
        ("lbgat", 6.0, [("student", "adv", True), ("student", "nat", True), ("guide", "nat", True)]),
        ("lbgat-kl", 0.0, [("student", "adv", True), ("student", "nat", False), ("guide", "nat", True)]),
        ("lbgat-frozen", 0.0, [("student", "adv", True), ("student", "nat", False)]),  # the guide: in eval mode
        ("lbgat-no-clean", 0.0, [("student", "adv", True), ("guide", "nat", True)]),
        ("trades", 6.0, [("student", "nat", True), ("student", "adv", True), ("student", "nat", False)]),
        ("at", 6.0, [("student", "adv", True)]),
        ("natural", 6.0, [("student", "nat", True)]),
    ],
)
def test_train_mode_passes_in_the_published_order(method, beta, expected):
    notes = []
    student, guide = recorded("student", notes), recorded("guide", notes)
    chosen = objective(method, beta=beta)
    optimizer = torch.optim.SGD([*student.parameters(), *guide.parameters()], lr=0.1)
    spec = AttackSpec(epsilon=0.1, step_size=0.05, num_steps=2)
    x, y = torch.rand(3, 3, 4, 4), torch.tensor([0, 1, 2])
    step = create_step(student, guide, chosen, optimizer, spec)
    terms = run_step(step, [x], y, [x + 0.01])
    assert len(step.x_adv) == (method != "natural")
    passes = [(who, "nat" if torch.equal(images, x) else "adv", grad) for who, images, grad in notes]
    assert passes == expected
    assert all(torch.equal(images, step.x_adv[0]) for _, images, _ in notes if not torch.equal(images, x))
    assert student.bn.num_batches_tracked == sum(who == "student" for who, _, _ in notes)
    assert all(not term.requires_grad and term.shape == () for term in terms.values())


def test_the_step_moves_student_and_guide_and_at_beta_0_too():
    student, guide = Small(), Small()
    optimizer = torch.optim.SGD([*student.parameters(), *guide.parameters()], lr=0.1)
    before = [p.detach().clone() for p in (*student.parameters(), *guide.parameters())]
    step = create_step(student, guide, create_objective("lbgat", beta=0.0), optimizer, AttackSpec(0.1, 0.05, 1))
    x = torch.rand(3, 3, 4, 4)
    step([x], torch.tensor([0, 1, 2]))
    after = [*student.parameters(), *guide.parameters()]
    # A bias before BatchNorm has no gradient but for rounding.
    moved = [not torch.equal(a, b) for a, b in zip(after, before, strict=True)]
    names = [f"{w}.{n}" for w, m in (("student", student), ("guide", guide)) for n, _ in m.named_parameters()]
    assert [n for n, m in zip(names, moved, strict=True) if not m and not n.endswith("conv.bias")] == []


@pytest.mark.parametrize(("method", "start"), [("lbgat", "gaussian"), ("trades", "gaussian"), ("at", "uniform")])
def test_where_the_attack_starts(method, start):
    assert create_objective(method).start == start


def test_unknown_method_lists_the_known_ones():
    assert {"lbgat", "trades", "at", "natural"} <= METHODS.keys()
    with pytest.raises(UserError, match=f"unknown method 'nfgsm': choose {', '.join(METHODS)}"):
        create_objective("nfgsm")


def test_natural_has_no_attack():
    with pytest.raises(TypeError, match="without an attack"):
        create_objective("natural").inner(torch.zeros(1, 2), None, torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("value", ["six", None, True, torch.tensor(1.0), float("nan"), float("inf"), 10**400, -1])
def test_a_parameter_is_a_finite_number_in_its_range(value):
    with pytest.raises(UserError, match=r"--beta .* must be 0 or more"):
        create_objective("trades", beta=value)


def test_parameters_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="--gap-to 70 must be above --gap-from 80"):
        create_objective("ates", gap_from=80)
    with pytest.raises(UserError, match="--replays 1e\\+12 must be a whole number"):
        create_objective("free", replays=1e12)
    with pytest.raises(UserError, match="has a prior of each class: pass num_classes"):
        create_objective("ikl")
    assert create_objective("trades", beta=np.float32(2)).beta == 2.0
