"""AutoAttack in chunks gives the verdict of the official front end."""

import logging
import re

import numpy as np
import pyautoattack
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from datasets import load_dataset
from datasets.loader import to_device, to_float
from engine import suite as suites
from engine.autoattack import attack_chunk
from engine.errors import UserError
from engine.suite import STANDARD, Suite, choose_attacks

DIGITS = load_dataset("digits")
CPU = torch.device("cpu")


def digits(n):
    pixels, labels = to_device(DIGITS.x_test[:n], DIGITS.y_test[:n], CPU)
    return to_float(pixels), labels


def train(model, epochs, epsilon=0.0):
    """Naturally, or with single-step adversarial training at epsilon."""
    torch.manual_seed(0)
    pixels, labels = to_device(DIGITS.x_train, DIGITS.y_train, CPU)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(64):
            x, y = to_float(pixels[batch]), labels[batch]
            if epsilon:
                start = (x + torch.empty_like(x).uniform_(-epsilon, epsilon)).requires_grad_()
                (gradient,) = torch.autograd.grad(F.cross_entropy(model(start), y), start)
                x = (x + (start.detach() + epsilon * gradient.sign() - x).clamp(-epsilon, epsilon)).clamp(0, 1)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval().requires_grad_(False)


def tiny():
    """Fast enough for 5,000 queries: two strided convolutions on 16x16 images."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 32, 2, stride=2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


@pytest.fixture(scope="module")
def models():
    return {
        "untrained": tiny().eval().requires_grad_(False),
        "natural": train(tiny(), 10),
        "robust": train(tiny(), 25, epsilon=0.1),
    }


def suite(
    norm="linf", epsilon=0.1, attacks=STANDARD, version="standard", batch_size=12, package=pyautoattack, **kwargs
):
    return Suite(package, attacks, norm, epsilon, 3, version, batch_size, **kwargs)


def attacked(model, suite, x, y):
    """The steps of a chunk -> x_adv (the clean image where robust) and the arrays of ``Outcomes`` for its images."""
    x_adv, broken_by = x.cpu().numpy().copy(), np.full(len(x), "", "U16")
    for step in attack_chunk(model, suite, x, y):
        x_adv[step.broken], broken_by[step.broken] = step.x_adv, step.name
    return {"x_adv": x_adv, "adversarial_prediction": step.prediction, "broken_by": broken_by}


def official(model, x, y, norm, epsilon, batch_size, attacks=None):
    """The official front end, called once per chunk."""
    x_adv, prediction = [], []
    for chunk_x, chunk_y in zip(x.split(batch_size), y.split(batch_size), strict=True):
        version = {"version": "custom", "attacks": attacks} if attacks else {"version": "standard"}
        front_end = pyautoattack.AutoAttack(model, norm=norm, eps=epsilon, seed=3, **version)
        result = front_end.run_standard_evaluation(chunk_x, chunk_y, batch_size=batch_size)
        x_adv.append(result[0])
        prediction.append(result[1])
    return torch.cat(x_adv).numpy(), torch.cat(prediction).numpy()


@pytest.mark.parametrize(
    "name, norm, epsilon, n",
    [
        ("untrained", "linf", 0.1, 18),
        ("untrained", "l2", 0.6, 18),
        ("natural", "linf", 0.1, 18),
        ("natural", "l2", 3.0, 18),
        ("robust", "linf", 0.1, 12),
        ("robust", "l2", 0.6, 12),
    ],
)
def test_same_verdict_as_the_official_front_end(models, name, norm, epsilon, n):
    x, y = digits(n)
    chunks = [attacked(models[name], suite(norm, epsilon), x[i : i + 12], y[i : i + 12]) for i in range(0, n, 12)]
    ours = {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}
    x_adv, prediction = official(models[name], x, y, {"linf": "Linf", "l2": "L2"}[norm], epsilon, 12)
    np.testing.assert_array_equal(ours["adversarial_prediction"], prediction)
    np.testing.assert_array_equal(ours["x_adv"], x_adv)
    np.testing.assert_array_equal(ours["broken_by"] == "", prediction == y.numpy())
    np.testing.assert_array_equal(ours["broken_by"] == "clean", models[name](x).argmax(1).numpy() != y.numpy())
    difference = (x_adv - x.numpy()).reshape(len(x), -1)
    assert np.linalg.norm(difference, np.inf if norm == "linf" else 2, axis=1).max() <= epsilon + 1e-6
    if name == "robust":  # the test would be worth little if all fell or none
        assert 2 <= (ours["broken_by"] == "").sum() <= 10


def test_same_verdict_for_custom_attacks(models):
    """``fab`` with its five restarts shares an object with ``fab-t``, which has one."""
    x, y = digits(12)
    attacks = ["apgd-dlr", "fab", "fab-t"]
    ours = attacked(models["robust"], suite(attacks=tuple(attacks), version="custom"), x, y)
    x_adv, prediction = official(models["robust"], x, y, "Linf", 0.1, 12, attacks)
    np.testing.assert_array_equal(ours["adversarial_prediction"], prediction)
    np.testing.assert_array_equal(ours["x_adv"], x_adv)


def test_standard_is_the_suites_own_list(models):
    assert list(STANDARD) == pyautoattack.AutoAttack(models["natural"]).attacks_to_run


def test_suite_warns_when_square_finds_what_the_others_missed():
    accuracy = {"clean": 90.0, "apgd-ce": 50.0, "square": 49.0}
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    suites.LOGGER.addHandler(handler)
    try:
        suite().warn_about_square(accuracy)
        suite().warn_about_square({**accuracy, "square": 49.9})
    finally:
        suites.LOGGER.removeHandler(handler)
    assert [re.search(r"decreased the robust accuracy of (\S+)\.", r.getMessage())[1] for r in records] == ["1.00%"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false")
def test_on_cuda(models):
    x, y = digits(12)
    on_cpu = attacked(models["natural"], suite(), x, y)
    model = tiny().requires_grad_(False).eval().cuda()
    model.load_state_dict(models["natural"].state_dict())
    on_cuda = attacked(model, suite(device="cuda"), x.cuda(), y.cuda())
    assert (on_cpu["broken_by"] == on_cuda["broken_by"]).mean() > 0.8  # a rounding may decide an image


def test_unknown_attack_is_a_user_error():
    assert choose_attacks("custom", "square, apgd-ce,square") == ("square", "apgd-ce")
    with pytest.raises(UserError, match="unknown attack x; choose apgd-ce"):
        choose_attacks("custom", "x")
