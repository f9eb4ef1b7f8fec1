"""Weight perturbation: the step with a proxy, and what is left as it was."""

import copy

import pytest
import torch
from torch import nn

from attacks.awp import directions, perturbed, perturbed_weights, statistics_kept
from attacks.pgd import AttackSpec
from engine.steps import create_step
from losses import METHODS, create_objective
from losses.base import FROZEN_PASSES
from models.accelerate import NO_ACCELERATION, AccelerationConfig
from tests.helpers import new_tiny_net, objective, run_step
from utils.errors import UserError

B, C = 6, 5
VALUES = {"alpha": 4.0, "beta": 6.0, "gamma": 0.4, "temperature": 2.0, "num_classes": C}


def labels():
    return torch.tensor([0, 3, 1, 1, 2, 3])


def make_step(method, gamma, weight_decay=5e-4):
    """A step and its batch; the same whenever it is called."""
    student, guide = new_tiny_net(4, 1), new_tiny_net(5, 2) if method.startswith(("lbgat", "hat")) else None
    if method in ("hat", "lbgat-frozen"):
        guide.eval().requires_grad_(False)
    parameters = [p for net in (student, guide) if net for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=weight_decay)
    chosen = objective(method, **VALUES).double()
    attack = AttackSpec(0.05, 0.02, 2)
    step = create_step(
        student,
        guide,
        chosen,
        optimizer,
        attack,
        awp_gamma=gamma,
        view_weights=(1.0, 0.3),
        acceleration=NO_ACCELERATION,
    )
    x = torch.rand(B, 3, 8, 8, dtype=torch.float64)
    return step, (x, labels(), x + 0.001 * torch.randn_like(x))


def reference_awp_step(step, views, y, gamma, proxy_lr):
    """As the published program does it: a copy of the student takes an SGD step uphill."""
    student, chosen = step.student.model, step.objective
    guide = step.guide.model if step.guide else None
    passes = chosen.awp_passes or chosen.passes

    def loss_of(net, guide):
        total = 0
        for x, x_adv, weight in zip(views, step.x_adv, step.view_weights, strict=False):
            logits = {}
            for name in passes:
                source = {"adv": (net, x_adv), "nat": (net, x), "guide": (guide, x)}
                if name in FROZEN_PASSES:
                    logits[name] = guide(x_adv if name == "helper" else x)
                    continue
                source["far"] = net, x + 2 * (x_adv - x)
                model, images = source[name.removesuffix(".no_grad")]
                logits[name] = model.train()(images)
            total = total + weight * sum(chosen.outer(logits, y).values())
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
@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].step == "standard"])
def test_awp_step_equals_the_step_with_a_proxy(method, second):
    results = []
    for reference in (True, False):
        step, (x, y, x_adv) = make_step(method, 0.01)
        torch.manual_seed(9)
        views, step.x_adv = [x, torch.rand_like(x)][: 1 + second], [x_adv, torch.rand_like(x)]
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
    net = new_tiny_net(6, 1).float()
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
    net = new_tiny_net(4, 1)
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
    x, y, start = batch
    run_step(step, [x], y, [start])
    assert len(inside) == 1 and torch.equal(inside[0], before)
    assert step.guide.model.bn1.num_batches_tracked == 1
    assert not torch.equal(step.guide.model.conv1.weight, before)  # it still learns


def test_before_its_first_epoch_awp_changes_the_pass_order_alone():
    step, (x, y, x_adv) = make_step("trades", 0.005)
    assert step.passes == ("adv", "nat")
    step.set_epoch(step.attack, 0.0)
    plain, _ = make_step("trades", 0.0)
    assert plain.passes == ("nat", "adv", "nat.no_grad")
    for each in (step, plain):
        each.x_adv = [x_adv]
        each.update([x], y)
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
        student = new_tiny_net(4, 1)
        optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
        attack = AttackSpec(0.05, 0.02, 2)
        step = create_step(
            student, None, create_objective("trades"), optimizer, attack, awp_gamma=0.005, acceleration=acceleration
        )
        x, losses = torch.rand(B, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double(), []
        for i in range(4):
            step.set_epoch(attack, 0.005 if i > 1 else 0.0)
            losses.append(sum(run_step(step, [x], labels(), [x + 0.001]).values()).item())
            if i == 1:
                warm = len(compiled)
        results.append(losses)
    assert results[1] == pytest.approx(results[0], rel=1e-9)
    assert len(compiled) == warm > 0


@pytest.mark.parametrize("gamma", [0.0, 0.005])
def test_an_image_counts_once_into_the_prior(gamma):
    """Weight perturbation evaluates the loss twice; the logits that count are those of the step itself."""
    step, batch = make_step("ikl", gamma)
    seen = []
    step.student.model.register_forward_hook(lambda m, i, o: seen.append(o.detach()) if m.training else None)
    x, y, start = batch
    run_step(step, [x], y, [start])
    expected = torch.zeros(C, C, dtype=torch.float64).index_add(0, y, (seen[-1] / 2.0).softmax(1))
    assert step.objective.prior_sums.sum().item() == pytest.approx(len(x))
    torch.testing.assert_close(step.objective.prior_sums, expected)


def test_weights_that_are_computed_from_others_are_refused():
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    for model in (net, nn.BatchNorm2d(3)):
        with pytest.raises(UserError, match="weight perturbation is of plain weights, which this network lacks"):
            perturbed_weights(model)
