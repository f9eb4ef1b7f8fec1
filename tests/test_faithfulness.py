"""The numbers of the published programs, to float64 rounding. LBGAT_GOLDEN names another file of the same form."""

import re

import pytest
import torch

from attacks.pgd import GAUSSIAN_START, AttackSpec
from engine.steps import create_step
from models import create_model
from tests.helpers import GOLDEN, objective, run_step, tiny_net

TOLERANCE = 1e-9
ATTACK = AttackSpec(epsilon=0.031, step_size=0.007, num_steps=10)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


def parse_case(case):
    """``lbgat_beta6`` -> ("lbgat", 6.0); other cases are not training runs of one method."""
    match = re.fullmatch(r"([a-z0-9]+)_beta([\d.]+)", case)
    return (match[1], float(match[2])) if match else None


TRAINING_CASES = [case for case in GOLDEN.cases if parse_case(case)]


@pytest.mark.parametrize("case", TRAINING_CASES)
def test_training_steps(case):
    method, beta = parse_case(case)
    student = tiny_net(GOLDEN.state(case, "student0"))
    guide_state = GOLDEN.state(case, "guide0")
    guide = tiny_net(guide_state) if guide_state else None
    parameters = [p for net in (student, guide) if net for p in net.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=2e-4)
    step = create_step(student, guide, objective(method, beta=beta), optimizer, ATTACK)
    x, y, noise = (GOLDEN.get(case, key) for key in ("x", "y", "noise"))
    assert len(x) == GOLDEN.steps
    for i in range(GOLDEN.steps):
        terms = run_step(step, [x[i]], y[i], [x[i] + GAUSSIAN_START * noise[i]])
        close(step.x_adv[0], GOLDEN.get(case, "x_adv")[i])
        close(sum(terms.values()), GOLDEN.get(case, "loss")[i])
    for which, net in (("student", student), ("guide", guide)):
        expected = GOLDEN.state(case, f"{which}{GOLDEN.steps}")
        assert (net is None) == (not expected)
        if net is not None:
            assert set(net.state_dict()) == set(expected)
            for name, tensor in net.state_dict().items():
                close(tensor, expected[name])


DKL_CASES = sorted({key.split("/")[1] for key in GOLDEN.arrays if re.match(r"dkl/(ikl|gkl)_.+/loss", key)})


@pytest.mark.parametrize("case", DKL_CASES)
def test_dkl(case):
    """``gkl_a4b20g04``: alpha 4, beta 20, gamma 0.4; without g, gamma 1."""
    method, alpha, beta, gamma = re.fullmatch(r"([a-z]+)_a(\d+)b(\d+)(?:g(\d+))?", case).groups()
    gamma = 1.0 if gamma is None else float(f"{gamma[0]}.{gamma[1:] or 0}")
    nat, adv = (GOLDEN.get("dkl", key).clone().requires_grad_() for key in ("logits_nat", "logits_adv"))
    parameters = {"alpha": float(alpha), "beta": float(beta), "gamma": gamma, "temperature": 1.0}
    dkl = objective(method, nat.shape[1], **parameters).double()
    dkl.prior.copy_(GOLDEN.get("dkl", "class_prior"))
    terms = dkl.outer({"nat": nat, "adv": adv}, GOLDEN.get("dkl", "y"))
    loss = sum(terms.values()) - terms["ce"]  # the file has DKL alone
    close(loss.detach(), GOLDEN.get("dkl", case, "loss"))
    for gradient, name in zip(torch.autograd.grad(loss, (nat, adv)), ("grad_nat", "grad_adv"), strict=True):
        close(gradient, GOLDEN.get("dkl", case, name))


@pytest.mark.parametrize(("method", "gamma"), [("trades", 0.005), ("at", 0.01)])
def test_awp_step(method, gamma):
    case = f"awp_{method}"
    student = tiny_net(GOLDEN.state(case, "student0"))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    step = create_step(student, None, objective(method, beta=6.0), optimizer, ATTACK, awp_gamma=gamma)
    views, y = [GOLDEN.get(case, "x")], GOLDEN.get(case, "y")
    step.x_adv = [GOLDEN.get(case, "x_adv")]
    direction, expected = step.awp_direction(views, y, [{}]), GOLDEN.state(case, "direction")
    assert set(direction) == set(expected)
    for name in expected:
        close(direction[name][1], expected[name])
    close(sum(step.update(views, y).values()), GOLDEN.get(case, "loss"))
    expected = GOLDEN.state(case, "student1")
    assert set(student.state_dict()) == set(expected)
    for name, tensor in student.state_dict().items():
        close(tensor, expected[name])


def fill(state, sin_factor):
    """The golden file's synthetic weights (methods.md, last section)."""
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        n = tensor.numel()
        s = torch.sin(sin_factor * torch.arange(n, dtype=torch.float64) + 0.11 * len(name)).reshape(tensor.shape)
        if tensor.dim() >= 2:
            filled = s * (2.0 / (n / tensor.shape[0])) ** 0.5
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            filled = 1 + 0.25 * s
        else:
            filled = 0.1 * s
        tensor.copy_(filled)


@pytest.mark.parametrize("network", GOLDEN.networks)
def test_forward(network):
    model = create_model(network, GOLDEN.num_classes).double().eval()
    fill(model.state_dict(), GOLDEN.sin_factor)
    x = (0.5 + 0.5 * torch.sin(0.01 * torch.arange(2 * 3 * 32 * 32, dtype=torch.float64))).view(2, 3, 32, 32)
    with torch.no_grad():
        close(model(x), GOLDEN.get("forward", network, "logits"))
