"""DKL, IKL, GKL, MART, weight perturbation, averages, schedules: identities, closed forms, slow references."""

import copy
import json
import math
import signal
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from attacks.awp import directions, perturbed, perturbed_weights, statistics_kept
from attacks.pgd import AttackSpec, frozen
from engine.averaging import WeightAverage
from engine.config import TrainConfig, parse_train
from engine.logger import RunLog
from engine.schedule import attack_spec, awp_gamma, learning_rate
from engine.steps.standard import TrainStep, View
from engine.train_state import load_training_state
from engine.trainer import Stopped, Trainer
from losses import METHODS, create_objective
from losses.base import kl_per_image
from losses.dkl import soft_cross_entropy, weighted_mse
from models.accelerate import NO_ACCELERATION, AcceleratedModel, AccelerationConfig
from models.weights import student_state
from tests.helpers import tiny_net
from utils.errors import UserError

B, C = 6, 5
VALUES = {"alpha": 4.0, "beta": 6.0, "gamma": 0.4, "temperature": 2.0, "num_classes": C}


def double(*shape, scale=2.0):
    return (scale * torch.randn(*shape, dtype=torch.float64)).requires_grad_()


def labels():
    return torch.tensor([0, 3, 1, 1, 2, 3])


def random_prior():
    return torch.rand(C, C, dtype=torch.float64).softmax(1)


def with_prior(method, **changes):
    objective = create_objective(method, **{**VALUES, **changes}).double()
    objective.prior.copy_(random_prior())
    return objective


def slow_weighted_mse(d, w):
    values = []
    for row, weights in zip(d.tolist(), w.tolist(), strict=True):
        pairs = [(j, k) for j in range(C) for k in range(C)]
        values.append(sum(weights[j] * weights[k] * (row[j] - row[k]) ** 2 for j, k in pairs) / 4)
    return values


# -- losses ----------------------------------------------------------------------------------------------------------


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
    objective = create_objective("dkl", alpha=1.0, beta=1.0)
    terms = objective.outer({"nat": nat, "adv": adv}, labels())
    actual = torch.autograd.grad(terms["wmse"] + terms["soft_ce"], (nat, adv))
    expected = torch.autograd.grad(kl_per_image(nat, adv).mean(), (nat, adv))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    (attack,) = torch.autograd.grad(objective.inner(adv, nat.detach(), labels()).mean(), adv)
    torch.testing.assert_close(attack, expected[1], rtol=0, atol=1e-12)


def test_a_trades_step_is_a_dkl_step():
    """alpha = beta = 6, and the BatchNorm passes do not matter in one step of a net without BatchNorm."""
    weights = []
    for method in ("trades", "dkl"):
        torch.manual_seed(3)
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, C)).double()
        step = TrainStep(
            net,
            None,
            create_objective(method, alpha=6.0, beta=6.0),
            torch.optim.SGD(net.parameters(), lr=0.1),
            AttackSpec(0.1, 0.03, 4),
        )
        x = torch.rand(B, 3, 2, 2, dtype=torch.float64)
        for i in range(3):
            step(x, labels(), x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).double())
        weights.append([p.detach().clone() for p in net.parameters()])
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_gkl_with_gamma_1_and_a_batch_constant_prior_is_ikl():
    nat, adv, y = double(B, C), double(B, C), torch.full((B,), 2)
    terms = [with_prior(method, gamma=1.0) for method in ("ikl", "gkl")]
    terms[1].prior.copy_(terms[0].prior)
    values = [sum(objective.outer({"nat": nat, "adv": adv}, y).values()) for objective in terms]
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
    for objective in (ikl, gkl):
        assert torch.autograd.gradcheck(lambda n, a, o=objective: o.wmse(n, a, y), (nat, adv))
        assert torch.autograd.gradcheck(lambda a, o=objective: total(o, nat.detach(), a), (adv,))
        assert torch.autograd.gradcheck(lambda a, o=objective: o.inner(a, nat.detach(), y), (adv,))
    assert torch.autograd.gradcheck(lambda a: soft_cross_entropy(nat, a), (adv,))


@pytest.mark.parametrize("method", METHODS)
def test_label_smoothing_is_of_the_cross_entropy_alone(method):
    logits = {name: double(B, C).detach() for name in ("adv", "nat", "guide")}
    plain, smooth = (create_objective(method, label_smoothing=s, **VALUES).outer(logits, labels()) for s in (0.0, 0.1))
    which = {"lbgat": "guide", "at": "adv", "mart": "adv"}.get(method, "nat")
    ce = "guide_ce" if method == "lbgat" else "ce"
    towards_all = -logits[which].log_softmax(1).mean()
    assert smooth[ce].item() == pytest.approx(0.9 * plain[ce].item() + 0.1 * towards_all.item(), rel=1e-6)
    assert all(smooth[name].item() == plain[name].item() for name in plain if name != ce)


# -- the class prior -------------------------------------------------------------------------------------------------


def test_class_prior_is_the_mean_prediction_of_the_last_epoch():
    objective = create_objective("ikl", **VALUES).double()
    assert torch.equal(objective.prior, torch.full((C, C), 1 / C))
    batches = [(double(B, C).detach(), labels()) for _ in range(3)]
    for nat, y in batches:
        before = objective.prior.clone()
        objective.after_step({"nat": nat, "adv": double(B, C)}, y)
        assert torch.equal(objective.prior, before)  # it changes between epochs alone
    objective.end_epoch()
    for label in range(C):
        rows = [(row / 2.0).softmax(0) for nat, y in batches for row, k in zip(nat, y, strict=True) if k == label]
        expected = torch.stack(rows).mean(0) if rows else torch.full((C,), 1 / C, dtype=torch.float64)
        torch.testing.assert_close(objective.prior[label], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(objective.prior.sum(1), torch.ones(C).double(), rtol=1e-6, atol=0)
    assert not objective.prior_sums.any()
    kept = objective.prior.clone()
    objective.end_epoch()  # an epoch without any image
    assert torch.equal(objective.prior, kept)


@pytest.mark.parametrize("gamma", [0.0, 0.005])
def test_an_image_counts_once_into_the_prior(gamma):
    """Weight perturbation evaluates the loss twice; the logits that count are those of the step itself."""
    step, batch = make_step("ikl", gamma)
    seen = []
    step.student.model.register_forward_hook(lambda m, i, o: seen.append(o.detach()) if m.training else None)
    step(*batch)
    expected = torch.zeros(C, C, dtype=torch.float64).index_add(0, batch[1], (seen[-1] / 2.0).softmax(1))
    assert step.objective.prior_sums.sum().item() == pytest.approx(len(batch[0]))
    torch.testing.assert_close(step.objective.prior_sums, expected)


# -- weight perturbation ---------------------------------------------------------------------------------------------


def tiny(width, seed):
    """The golden cases' network, freshly initialised."""
    torch.manual_seed(seed)
    state = nn.Sequential()
    for name, module in (
        ("conv1", nn.Conv2d(3, width, 3, bias=False)),
        ("bn1", nn.BatchNorm2d(width)),
        ("conv2", nn.Conv2d(width, 2 * width, 3, bias=False)),
        ("bn2", nn.BatchNorm2d(2 * width)),
        ("fc", nn.Linear(2 * width, C)),
    ):
        state.add_module(name, module)
    return tiny_net(state.double().state_dict())


def make_step(method, gamma, weight_decay=5e-4):
    """A step and its batch; the same whenever it is called."""
    student, guide = tiny(4, 1), tiny(5, 2) if method == "lbgat" else None
    parameters = [p for net in (student, guide) if net for p in net.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=weight_decay)
    objective = create_objective(method, **VALUES).double()
    step = TrainStep(student, guide, objective, optimizer, AttackSpec(0.05, 0.02, 2), awp_gamma=gamma)
    x = torch.rand(B, 3, 8, 8, dtype=torch.float64)
    return step, (x, labels(), x + 0.001 * torch.randn_like(x))


def reference_awp_step(step, views, y, gamma, proxy_lr):
    """As the published program does it: a copy of the student takes an SGD step uphill."""
    student, objective = step.student.model, step.objective
    guide = step.guide.model if step.guide else None
    passes = objective.awp_passes or objective.passes

    def loss_of(net, guide):
        total = 0
        for view in views:
            logits = {}
            for name in passes:
                source = {"adv": (net, view.x_adv), "nat": (net, view.x), "guide": (guide, view.x)}
                model, images = source[name.removesuffix(".no_grad")]
                logits[name] = model.train()(images)
            total = total + view.weight * sum(objective.outer(logits, y).values())
        return total

    proxy = copy.deepcopy(student)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=proxy_lr)
    (-loss_of(proxy, copy.deepcopy(guide))).backward()
    optimizer.step()
    v = {}
    for (name, w), moved in zip(student.named_parameters(), proxy.parameters(), strict=True):
        if "weight" in name and w.dim() > 1:
            difference = (moved - w).detach()
            v[name] = w.detach().norm() / (difference.norm() + 1e-20) * difference
    weights = dict(student.named_parameters())
    with torch.no_grad():
        for name in v:
            weights[name].add_(gamma * v[name])
    loss = loss_of(student, guide)
    step.optimizer.zero_grad()
    loss.backward()
    step.optimizer.step()
    with torch.no_grad():
        for name in v:
            weights[name].sub_(gamma * v[name])
    return loss.item()


def states(step):
    nets = {"student": step.student, "guide": step.guide}
    return {f"{n}.{k}": t for n, net in nets.items() if net for k, t in net.model.state_dict().items()}


@pytest.mark.parametrize("second", [False, True], ids=["one view", "two views"])
@pytest.mark.parametrize("method", METHODS)
def test_awp_step_equals_the_step_with_a_proxy(method, second):
    results = []
    for reference in (True, False):
        step, (x, y, x_adv) = make_step(method, 0.01)
        torch.manual_seed(9)
        other = View(torch.rand_like(x), None, 0.3, torch.rand_like(x))
        views = [View(x, None, x_adv=x_adv)] + [other] * second
        for _ in range(2):
            if reference:
                loss = reference_awp_step(step, views, y, 0.01, proxy_lr=0.1)
            else:
                loss = sum(step.update(views, y).values()).item()
        results.append((loss, states(step)))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-10)
    for name, tensor in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_perturb_and_restore_is_bit_identical():
    net = tiny(6, 1).float()
    before = copy.deepcopy(net.state_dict())
    weights = list(perturbed_weights(net).values())
    assert list(perturbed_weights(net)) == ["conv1.weight", "conv2.weight", "fc.weight"]
    direction = directions(weights, [torch.randn_like(w) for w in weights])
    for w, v in zip(weights, direction, strict=True):
        assert v.norm().item() == pytest.approx(w.norm().item(), rel=1e-5)
    with pytest.raises(ZeroDivisionError), perturbed(weights, direction, 0.7):  # restored after an error, too
        for name, w in perturbed_weights(net).items():
            assert (w - before[name]).norm().item() == pytest.approx(0.7 * w.norm().item(), rel=0.5)
        raise ZeroDivisionError
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    with perturbed(weights, direction, 0.7), torch.no_grad():
        weights[0].add_(1.0)
    torch.testing.assert_close(weights[0].detach(), before["conv1.weight"] + 1, rtol=0, atol=1e-6)


def test_a_weight_without_gradient_is_not_perturbed():
    (v,) = directions([torch.ones(2, 2)], [torch.zeros(2, 2)])
    assert torch.equal(v, torch.zeros(2, 2))


def test_statistics_kept():
    net = tiny(4, 1)
    before = copy.deepcopy(net.state_dict())
    with statistics_kept(net):
        net.train()(torch.rand(2, 3, 8, 8).double())
        assert net.bn1.num_batches_tracked == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_guide_is_not_perturbed_and_runs_once():
    step, batch = make_step("lbgat", 0.01)
    inside = []
    step.guide.model.register_forward_pre_hook(
        lambda module, inputs: inside.append(module.training and module.conv1.weight.detach().clone())
    )
    before = step.guide.model.conv1.weight.detach().clone()
    step(*batch)
    assert len(inside) == 1 and torch.equal(inside[0], before)
    assert step.guide.model.bn1.num_batches_tracked == 1
    assert not torch.equal(step.guide.model.conv1.weight, before)  # it still learns


def test_before_its_first_epoch_awp_changes_the_pass_order_alone():
    step, (x, y, x_adv) = make_step("trades", 0.005)
    assert step.passes == ("adv", "nat")
    step.awp_gamma = 0.0
    plain, _ = make_step("trades", 0.0)
    assert plain.passes == ("nat", "adv", "nat.no_grad")
    for each in (step, plain):
        each.update([View(x, None, x_adv=x_adv)], y)
    for name, p in step.student.model.named_parameters():
        torch.testing.assert_close(p, dict(plain.student.model.named_parameters())[name])
    assert step.student.model.bn1.num_batches_tracked == 2 and plain.student.model.bn1.num_batches_tracked == 3


def test_weight_perturbation_recompiles_nothing(monkeypatch):
    compiled, real_compile = [], torch.compile

    def counting_backend(graph, example_inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **kwargs: real_compile(f, backend=counting_backend, **kwargs))
    results = []
    for acceleration in (NO_ACCELERATION, AccelerationConfig(compile_batch_size=B)):
        student = tiny(4, 1)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        objective = create_objective("trades", beta=6.0)
        step = TrainStep(
            student, None, objective, optimizer, AttackSpec(0.05, 0.02, 2), nullcontext, acceleration, 0.005
        )
        x, losses = torch.rand(B, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double(), []
        for i in range(4):
            step.awp_gamma = 0.005 if i > 1 else 0.0
            losses.append(sum(step(x, labels(), x + 0.001)[1].values()).item())
            if i == 1:
                warm = len(compiled)
        results.append(losses)
    assert results[1] == pytest.approx(results[0], rel=1e-9)
    assert len(compiled) == warm > 0


# -- averages --------------------------------------------------------------------------------------------------------


def test_average_equals_its_closed_form():
    net = tiny(4, 1)
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


# -- schedules -------------------------------------------------------------------------------------------------------


def test_multistep_schedule():
    config = TrainConfig()
    for epoch in range(1, 101):
        expected = 0.02 if epoch == 1 else 0.1 if epoch < 76 else 0.01 if epoch < 91 else 0.001
        assert learning_rate(config, epoch) == pytest.approx(expected, rel=1e-12)


def test_cosine_schedule():
    config = TrainConfig(schedule="cosine", lr=0.2, epochs=200)
    for epoch in range(1, 201):
        expected = 0.2 * 0.5 * (1 + math.cos(math.pi * epoch / 201))
        assert learning_rate(config, epoch) == learning_rate(config, epoch, 0.99) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("epochs", [1, 7, 30])
def test_onecycle_schedule(epochs):
    config = TrainConfig(schedule="onecycle", lr=0.3, epochs=epochs)
    for epoch in range(1, epochs + 1):
        for done in (0.0, 0.25, 0.5, 1.0):
            t = epoch - 1 + done
            expected = 0.3 * t / (0.4 * epochs) if t < 0.4 * epochs else 0.3 * (epochs - t) / (0.6 * epochs)
            assert learning_rate(config, epoch, done) == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("epochs", [1, 7, 49, 200])
def test_epsilon_ramp_ends_at_exactly_epsilon(epochs):
    config = TrainConfig(epsilon="8/255", epsilon_ramp="linear", step_ratio=0.5, num_steps=5, epochs=epochs)
    for epoch in range(1, epochs + 1):
        spec = attack_spec(config, "gaussian", epoch)
        assert spec.epsilon == pytest.approx(8 / 255 * epoch / epochs, rel=1e-15)
        assert spec.step_size == spec.epsilon / 2
    assert spec == AttackSpec(8 / 255, 4 / 255, 5, "linf", "gaussian")


def test_without_a_ramp_the_attack_is_that_of_the_settings():
    config = TrainConfig()
    assert {attack_spec(config, "uniform", e) for e in (1, 50, 100)} == {AttackSpec(0.031, 0.007, 10, start="uniform")}
    assert attack_spec(TrainConfig(epsilon_ramp="linear"), "gaussian", 50).step_size == 0.007


def test_awp_start_epoch():
    config = TrainConfig(awp_gamma=0.005, awp_start_epoch=10)
    assert [awp_gamma(config, epoch) for epoch in (1, 9, 10, 11)] == [0, 0, 0.005, 0.005]


# -- whole runs ------------------------------------------------------------------------------------------------------

RUN = {
    "dataset": "digits", "student": "wrn-10-1", "guide": "wrn-10-1", "limit_train": 48, "batch_size": 16, "epochs": 2,
    "num_steps": 2, "eval_size": 8, "val_size": 24, "save_freq": 1, "device": "cpu", "mark": "run", "step_size": 0.02,
}  # fmt: skip
EVERYTHING = {
    "awp_gamma": 0.005, "average_every": "step", "epsilon_ramp": "linear", "step_ratio": 0.5, "schedule": "onecycle",
    "label_smoothing": 0.1, "patience": 5,
}  # fmt: skip


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Makes trainers of one folder."""
    monkeypatch.setattr(RunLog, "plot", lambda self, final: None)

    def make(folder="run", **changes):
        paths = {"log_dir": str(tmp_path / folder), "checkpoint_dir": str(tmp_path / folder)}
        return Trainer(TrainConfig(**{**RUN, **paths, **changes}))

    return make


def stop_after(monkeypatch, number):
    """The process gets a SIGTERM during its training step of that number."""
    count, original = 0, TrainStep.__call__

    def step(self, *args):
        nonlocal count
        count += 1
        if count == number:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(TrainStep, "__call__", step)


def saved(folder, name):
    return torch.load(folder / "run" / name, weights_only=True)


def tensors(value, where=""):
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{where}/{key}")


def assert_same_weights(a, b):
    a, b = dict(tensors(a)), dict(tensors(b))
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bit_for_bit_with_everything_on(tmp_path, monkeypatch, trainer, method):
    settings = {**EVERYTHING, "method": method, "average_every": "epoch" if method in ("lbgat", "gkl") else "step"}
    trainer("whole", **settings).fit()
    with monkeypatch.context() as patch:
        stop_after(patch, 5)  # in the middle of the second epoch of three steps
        with pytest.raises(Stopped):
            trainer("parts", **settings).fit()
    assert (saved(tmp_path / "parts", "last.pt")["epoch"], saved(tmp_path / "parts", "last.pt")["steps_done"]) == (2, 2)
    trainer("parts", **settings).fit()
    for name in ("last.pt", "best.pt", "student-epoch002.pt", "average-epoch002.pt"):
        assert_same_weights(saved(tmp_path / "parts", name), saved(tmp_path / "whole", name))
    lines = [(tmp_path / f / "run" / "metrics.jsonl").read_text().splitlines() for f in ("whole", "parts")]
    for a, b in zip(*([json.loads(line) for line in each] for each in lines), strict=True):
        assert {k: v for k, v in a.items() if "second" not in k} == {k: v for k, v in b.items() if "second" not in k}
    if method in ("ikl", "gkl"):
        state = saved(tmp_path / "whole", "last.pt")["objective"]
        assert not state["prior_sums"].any() and not torch.equal(state["prior"], torch.full((10, 10), 0.1))


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_average_of_a_run_is_evaluated_and_saved(tmp_path, monkeypatch, trainer, every):
    seen, original = [], TrainStep.__call__

    def step(self, *args):
        result = original(self, *args)
        seen.append(copy.deepcopy(self.student.model.state_dict()))
        return result

    monkeypatch.setattr(TrainStep, "__call__", step)
    run = trainer(method="trades", average_every=every, average_tau=0.5, epochs=3)
    run.fit()
    weights = seen if every == "step" else seen[2::3]
    expected = weights[0]["fc.weight"]
    for state in weights[1:]:
        expected = 0.5 * expected + 0.5 * state["fc.weight"]
    average = saved(tmp_path / "run", "average-epoch003.pt")
    torch.testing.assert_close(average["fc.weight"], expected)
    assert all(torch.equal(average[k], v) for k, v in run.average.model.state_dict().items())
    assert_same_weights(student_state(saved(tmp_path / "run", "last.pt"), "last.pt"), average)  # what is evaluated
    assert torch.equal(saved(tmp_path / "run", "student-epoch003.pt")["fc.weight"], seen[-1]["fc.weight"])
    best = saved(tmp_path / "run", "best.pt")
    assert best["best"]["chosen_by"] == "average_robust"
    chosen = saved(tmp_path / "run", f"average-epoch{best['best']['epoch']:03d}.pt")
    assert all(torch.equal(best["student"][name], chosen[name]) for name in chosen)
    line = json.loads((tmp_path / "run" / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    with frozen(run.average.model) as model, torch.no_grad():
        right = model(run.x_eval.float() / 255).argmax(1) == run.y_eval
    assert line["average_clean"] == pytest.approx(100 * right.float().mean().item())
    assert line["average_robust"] * 8 / 100 in range(9)


def test_patience_stops_where_validation_no_longer_improves(tmp_path, monkeypatch, trainer):
    values = iter([10.0, 30.0, 20.0, 25.0, 99.0])

    def evaluate(*args, **kwargs):
        return {"student_clean": 50.0, "student_robust": next(values), "robust_images": 8}

    monkeypatch.setattr("engine.trainer.evaluate", evaluate)
    settings = {"method": "at", "epochs": 9, "patience": 2, "limit_train": 16, "num_steps": 1}
    trainer(**settings).fit()
    log = (tmp_path / "run" / "run" / "train.log").read_text()
    assert "stopped early: no epoch since 2 was better (--patience 2)" in log
    assert saved(tmp_path / "run", "best.pt")["best"]["epoch"] == 2
    assert saved(tmp_path / "run", "last.pt")["epoch"] == 5
    trainer(**settings).fit()  # resumed, it stops at once
    assert saved(tmp_path / "run", "last.pt")["epoch"] == 5
    trainer(**{**settings, "patience": 3, "epochs": 5}).fit()
    assert saved(tmp_path / "run", "best.pt")["best"]["epoch"] == 5


@pytest.mark.parametrize(("changes", "free"), [({}, True), ({"schedule": "cosine"}, False), (EVERYTHING, False)])
def test_more_epochs_are_the_same_run_only_where_the_schedule_does_not_depend_on_them(tmp_path, trainer, changes, free):
    trainer(method="natural", epochs=1, limit_train=16, **changes).fit()
    if free:
        assert trainer(method="natural", epochs=2, limit_train=16, **changes).epoch == 2
    else:
        with pytest.raises(UserError, match="--epochs 1 then, 2 now"):
            trainer(method="natural", epochs=2, limit_train=16, **changes)


def test_a_state_from_before_a_setting_existed_goes_on_with_its_default(tmp_path, trainer):
    run = trainer(method="natural", epochs=1, limit_train=16)
    run.fit()
    path = tmp_path / "run" / "run" / "last.pt"
    state = torch.load(path, weights_only=True)
    for name in ("awp_gamma", "schedule", "average_every"):
        del state["config"][name]
    torch.save(state, path)
    args = run.data_fingerprint, torch.device("cpu")
    assert load_training_state(path, run.config, *args)["epoch"] == 2
    changed = TrainConfig(**{**vars(run.config), "awp_gamma": 0.005})
    with pytest.raises(UserError, match=r"--awp-gamma 0\.0 then, 0\.005 now"):
        load_training_state(path, changed, *args)


# -- command line ----------------------------------------------------------------------------------------------------

IMPOSSIBLE = {
    "--awp-gamma -0.005": "--awp-gamma -0.005 must be 0 or more",
    "--awp-gamma nan": "--awp-gamma nan must be 0 or more",
    "--awp-start-epoch 0": "--awp-start-epoch 0 must be at least 1",
    "--alpha -1": "--alpha -1.0 must be 0 or more",
    "--gamma -0.1": "--gamma -0.1 must be 0 or more",
    "--attack-beta -1": "--attack-beta -1.0 must be 0 or more",
    "--temperature 0": "--temperature 0.0 must be above 0",
    "--label-smoothing 1": "--label-smoothing 1.0 must be in [0, 1)",
    "--average-tau 1": "--average-tau 1.0 must be in [0, 1)",
    "--average-every year": "--average-every: invalid choice",
    "--schedule linear": "--schedule: invalid choice",
    "--epsilon-ramp cosine": "--epsilon-ramp: invalid choice",
    "--step-ratio -0.5": "--step-ratio -0.5 must be 0 or more",
    "--patience -1": "--patience -1 must be 0 or more",
    "--patience 5": "--patience 5 needs held-out images to judge by: add --val-size N",
}


@pytest.mark.parametrize("line", IMPOSSIBLE)
def test_impossible_settings(line):
    with pytest.raises(UserError) as caught:
        parse_train(line.split())
    assert IMPOSSIBLE[line] in str(caught.value) and "\n" not in str(caught.value)


def test_impossible_choice_without_a_command_line():
    with pytest.raises(UserError, match="--schedule linear: choose multistep or cosine or onecycle"):
        TrainConfig(schedule="linear")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--method mart --dataset cifar10 --student resnet18 --beta 5", "mart5-cifar10-resnet18"),
        ("--method ikl --dataset cifar100 --beta 20", "ikl-a4b20t4-cifar100-wrn34-10"),
        ("--method gkl --dataset cifar100 --beta 20 --temperature 1", "gkl-a4b20g0.4t1-cifar100-wrn34-10"),
        ("--method dkl --dataset cifar10", "dkl-a4b6-cifar10-wrn34-10"),
        ("--method lbgat --dataset cifar100 --awp-gamma 0.005", "lbgat6-awp-cifar100-wrn34-10"),
        ("--method at --dataset cifar10 --awp-gamma 0.01", "at-awp-cifar10-wrn34-10"),
    ],
)
def test_run_name(line, name):
    assert parse_train(line.split()).run_name == name


def test_help_says_each_method_with_its_flags_and_source(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    shown = capsys.readouterr().out
    for name, method in METHODS.items():
        assert f"\n  {name}\n" in shown and method.source in shown
    assert "--alpha --beta --gamma --temperature --attack-beta" in shown
