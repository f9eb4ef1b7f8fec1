"""The attack against a slow reference: start, steps, projection; the model is left as it was."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attacks.pgd import (
    GAUSSIAN_START,
    AttackSpec,
    check_attacked,
    clip,
    frozen,
    perturb,
    pgd20,
    pgd_step,
    starting_point,
)
from losses import create_objective
from tests.helpers import tiny_net
from utils.errors import UserError


def net(seed=0, widths=(4, 6), classes=5):
    """A small float64 network whose BatchNorm statistics are not the trivial ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    state = {"conv1.weight": draw(widths[0], 3, 3, 3) / 5, "conv2.weight": draw(widths[1], widths[0], 3, 3) / 6}
    for i, width in enumerate(widths, 1):
        state[f"bn{i}.weight"], state[f"bn{i}.bias"] = 1 + 0.2 * draw(width), 0.2 * draw(width)
        state[f"bn{i}.running_mean"], state[f"bn{i}.running_var"] = 0.1 * draw(width), 1 + 0.3 * draw(width).abs()
        state[f"bn{i}.num_batches_tracked"] = torch.tensor(3)
    state["fc.weight"], state["fc.bias"] = draw(classes, widths[1]), draw(classes)
    return tiny_net(state)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    x = torch.rand(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    x[0], x[1] = x[0].round(), 0.0  # images at the border of [0, 1]
    return x, torch.tensor([0, 1, 2, 3, 4, 0])


def slow_attack(model, x, y, value, spec, start):
    """Image by image, step by step, the clean logits afresh in every step."""
    model = copy.deepcopy(model).eval()
    results = []
    for i in range(len(x)):
        clean, label, x_adv = x[i : i + 1], y[i : i + 1], start[i : i + 1].clone()
        for _ in range(spec.num_steps):
            x_adv = x_adv.detach().requires_grad_()
            loss = value(model(x_adv), model(clean).detach(), label)
            loss.backward()
            gradient = x_adv.grad
            with torch.no_grad():
                if spec.norm == "linf":
                    x_adv = x_adv + spec.step_size * gradient.sign()
                    x_adv = clean + (x_adv - clean).clamp(-spec.epsilon, spec.epsilon)
                else:
                    delta = x_adv + spec.step_size * gradient / gradient.pow(2).sum().sqrt() - clean
                    length = delta.pow(2).sum().sqrt()
                    x_adv = clean + (delta * spec.epsilon / length if length > spec.epsilon else delta)
                x_adv = x_adv.clamp(0, 1)
        results.append(x_adv.detach())
    return torch.cat(results)


def kl(adv, nat, y):
    return F.kl_div(adv.log_softmax(1), nat.softmax(1), reduction="sum")


def ce(adv, nat, y):
    return F.cross_entropy(adv, y)


SPECS = [
    AttackSpec(epsilon=0.031, step_size=0.007, num_steps=10),
    AttackSpec(epsilon=0.2, step_size=0.15, num_steps=4),
    AttackSpec(epsilon=0.5, step_size=0.12, num_steps=8, norm="l2"),
    AttackSpec(epsilon=3.0, step_size=2.0, num_steps=3, norm="l2"),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.norm}-{s.epsilon}")
@pytest.mark.parametrize(("method", "value"), [("trades", kl), ("lbgat", kl), ("at", ce)])
def test_equals_the_slow_reference(batch, spec, method, value):
    x, y = batch
    model, objective = net(), create_objective(method)
    start = starting_point(x, spec, torch.Generator().manual_seed(9))
    with frozen(model):
        x_adv = perturb(
            model, x, y, inner=objective.inner, spec=spec, start=start, uses_clean=objective.inner_uses_clean
        )
    torch.testing.assert_close(x_adv, slow_attack(model, x, y, value, spec, start), rtol=0, atol=1e-9)
    assert not x_adv.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.norm}-{s.epsilon}")
def test_stays_in_the_ball_and_in_the_pixel_range(batch, spec, dtype):
    x, y = batch[0].to(dtype), batch[1]
    model = net().to(dtype)
    start = starting_point(x, spec, torch.Generator().manual_seed(1))
    with frozen(model):
        x_adv = perturb(model, x, y, inner=create_objective("at").inner, spec=spec, start=start, uses_clean=False)
    assert x_adv.shape == x.shape and x_adv.dtype == dtype
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    delta = (x_adv - x).double().flatten(1)
    size = delta.abs().amax(1) if spec.norm == "linf" else delta.norm(dim=1)
    assert size.max().item() <= spec.epsilon * (1 + 1e-6) + 1e-7
    if spec.step_size * spec.num_steps > 2 * spec.epsilon and spec.norm == "linf":
        assert size.min().item() > 0.9 * spec.epsilon  # and it uses the ball


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.norm}-{s.epsilon}")
def test_it_raises_what_it_maximises(batch, spec):
    x, y = batch
    model, objective = net(), create_objective("trades", beta=6.0)
    start = starting_point(x, spec, torch.Generator().manual_seed(2))
    with frozen(model):
        x_adv = perturb(model, x, y, inner=objective.inner, spec=spec, start=start)
        nat = model(x)
        before, after = (objective.inner(model(images), nat, y).sum().item() for images in (start, x_adv))
    assert after > 3 * before


class Linear(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_step_on_a_linear_model_in_closed_form(norm):
    generator = torch.Generator().manual_seed(4)
    model = Linear(torch.randn(3, 3 * 2 * 2, generator=generator, dtype=torch.float64))
    x = 0.4 + 0.2 * torch.rand(2, 3, 2, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([2, 0])
    spec = AttackSpec(epsilon=0.1, step_size=0.06, num_steps=1, norm=norm)
    with frozen(model):
        x_adv = perturb(model, x, y, inner=create_objective("at").inner, spec=spec, start=x, uses_clean=False)
    # d CE / d x = W^T (softmax(W x) - e_y)
    error = (x.flatten(1) @ model.weight.T).softmax(1) - torch.eye(3, dtype=torch.float64)[y]
    gradient = (error @ model.weight).detach().view_as(x)
    if norm == "linf":
        expected = x + 0.06 * gradient.sign()
    else:
        expected = x + 0.06 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)


def test_linf_step_is_clipped_first_to_the_ball_then_to_the_pixel_range():
    x = torch.tensor([0.5, 0.98, 0.02, 0.5]).view(1, 1, 2, 2)
    gradient = torch.tensor([3.0, 0.1, -2.0, 0.0]).view(1, 1, 2, 2)
    moved = pgd_step(x, gradient, x, AttackSpec(epsilon=0.03, step_size=0.05, num_steps=1))
    torch.testing.assert_close(moved.flatten(), torch.tensor([0.53, 1.0, 0.0, 0.5]), rtol=0, atol=1e-7)


def test_l2_without_a_gradient_stays_put():
    x = torch.full((2, 3, 2, 2), 0.5)
    spec = AttackSpec(epsilon=0.5, step_size=0.1, num_steps=1, norm="l2")
    assert torch.equal(pgd_step(x, torch.zeros_like(x), x, spec), x)


def test_epsilon_zero_gives_the_clean_image(batch):
    x, y = batch
    model = net()
    for norm in ("linf", "l2"):
        spec = AttackSpec(epsilon=0.0, step_size=0.007, num_steps=2, norm=norm)
        with frozen(model):
            x_adv = perturb(
                model, x, y, inner=create_objective("at").inner, spec=spec, start=x + 0.001, uses_clean=False
            )
        assert torch.equal(x_adv, x)


def test_clean_logits_are_computed_once_and_only_where_needed(batch):
    x, y = batch
    model, calls = net(), []

    def forward(images):
        calls.append((torch.equal(images, x), torch.is_grad_enabled()))
        return model(images)

    spec = AttackSpec(epsilon=0.031, step_size=0.007, num_steps=3)
    with frozen(model):
        perturb(forward, x, y, inner=create_objective("trades", beta=1.0).inner, spec=spec, start=x + 0.001)
        assert calls == [(True, False)] + [(False, True)] * 3
        calls.clear()
        perturb(forward, x, y, inner=create_objective("at").inner, spec=spec, start=x + 0.001, uses_clean=False)
        assert calls == [(False, True)] * 3


def snapshot(model):
    return {
        "modes": [module.training for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grads": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def assert_same(before, after):
    assert before["modes"] == after["modes"]
    assert before["requires_grad"] == after["requires_grad"]
    for a, b in zip(before["grads"], after["grads"], strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    assert all(torch.equal(before["state"][name], tensor) for name, tensor in after["state"].items())


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_as_it_found_it(batch, fails):
    x, y = batch
    model = net().train()
    model.bn2.eval()  # a mixture of modes and flags
    model.conv1.weight.requires_grad_(False)
    model.fc.weight.grad = torch.full_like(model.fc.weight, 7.0)
    before = snapshot(model)

    def inner(adv_logits, nat_logits, y):
        assert not any(module.training for module in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        if fails:
            raise ZeroDivisionError
        return F.cross_entropy(adv_logits, y, reduction="none")

    spec = AttackSpec(epsilon=0.031, step_size=0.007, num_steps=2)
    try:
        with frozen(model):
            perturb(model, x, y, inner=inner, spec=spec, start=x + 0.001)
    except ZeroDivisionError:
        assert fails
    assert_same(before, snapshot(model))


def test_does_not_write_to_its_inputs(batch):
    x, y = batch
    start = x + 0.001
    copies = x.clone(), y.clone(), start.clone()
    model = net()
    spec = AttackSpec(epsilon=0.031, step_size=0.007, num_steps=2)
    with frozen(model):
        perturb(model, x, y, inner=create_objective("at").inner, spec=spec, start=start, uses_clean=False)
    assert all(torch.equal(a, b) for a, b in zip((x, y, start), copies, strict=True))
    assert not x.requires_grad and not start.requires_grad


def test_gaussian_start_is_the_published_one():
    x = torch.rand(8, 3, 16, 16)
    spec = AttackSpec(epsilon=0.031, step_size=0.007, num_steps=1)
    start = starting_point(x, spec, torch.Generator().manual_seed(3))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    assert GAUSSIAN_START == 0.001
    assert torch.equal(start, x + 0.001 * noise)


def test_uniform_start_fills_the_box():
    x = torch.full((20, 3, 16, 16), 0.5)
    spec = AttackSpec(epsilon=0.1, step_size=0.007, num_steps=1, start="uniform")
    offset = starting_point(x, spec, torch.Generator().manual_seed(3)) - x
    assert offset.abs().max().item() <= 0.1 + 1e-7
    assert offset.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert offset.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    dark = starting_point(torch.zeros(2, 3, 4, 4), spec)
    assert dark.min() == 0 and dark.max() > 0.05  # clamped to [0, 1]


def test_uniform_l2_start_fills_the_ball():
    x = torch.full((500, 1, 2, 2), 0.5, dtype=torch.float64)
    spec = AttackSpec(epsilon=0.2, step_size=0.1, num_steps=1, norm="l2", start="uniform")
    radius = (starting_point(x, spec, torch.Generator().manual_seed(3)) - x).flatten(1).norm(dim=1)
    assert radius.max().item() <= 0.2
    # In 4 dimensions the radius of a uniform draw is eps U^(1/4), with mean 4/5 eps.
    assert radius.mean().item() == pytest.approx(0.16, rel=0.03)


@pytest.mark.parametrize("start", ["gaussian", "uniform"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_are_reproducible(start, norm):
    x = torch.rand(2, 3, 4, 4)
    spec = AttackSpec(epsilon=0.1, step_size=0.1, num_steps=1, norm=norm, start=start)
    first, again, other = (starting_point(x, spec, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_pgd_20_crosses_the_ball():
    assert [pgd20(epsilon).step_size for epsilon in (0.0, 0.031, 8 / 255)] == [0.003] * 3
    assert pgd20(0.11).step_size == pytest.approx(0.01)
    assert pgd20(0.5, "l2").step_size == pytest.approx(0.05)
    assert {pgd20(e, norm).num_steps for e in (0.031, 0.5) for norm in ("linf", "l2")} == {20}


def test_clip_has_no_gradient_at_the_bounds_whatever_the_version():
    x = torch.tensor([-0.5, 0.0, 1e-9, 0.5, 1.0, 1.5], dtype=torch.float64, requires_grad=True)
    clipped = clip(x)
    assert torch.equal(clipped, x.clamp(0, 1))
    clipped.sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 0, 0]


@pytest.mark.parametrize(("norm", "start"), [("Linf", "clean"), ("linf", "gauss")])
def test_an_unknown_norm_or_start_is_refused(norm, start):
    with pytest.raises(ValueError, match=r"'(Linf|gauss)': choose (linf, l2|gaussian, gaussian-clamped)"):
        AttackSpec(8 / 255, 2 / 255, 10, norm, start)


@pytest.mark.parametrize(
    ("change", "norm", "sentence"),
    [
        (lambda x: x + 0.05, "linf", ""),
        (lambda x: x + 0.2, "linf", "left the epsilon-ball"),
        (lambda x: x * 1e30 * 1e30, "linf", "left the epsilon-ball"),
        (lambda x: x + 0.2 / 192**0.5, "l2", ""),
        (lambda x: x + 0.35 / 192**0.5, "l2", "left the epsilon-ball"),
        (lambda x: x[:, :2], "linf", r"returned \(6, 2, 8, 8\) for images of \(6, 3, 8, 8\)"),
    ],
)
def test_what_an_attack_returns_is_checked(change, norm, sentence):
    x, spec = torch.full((6, 3, 8, 8), 0.5), AttackSpec(0.1 if norm == "linf" else 0.2, 0.01, 1, norm)
    with pytest.raises(UserError, match=sentence) if sentence else nullcontext():
        check_attacked([x], [change(x)], spec)
    check_attacked([x], [], spec)  # a method without an attack
