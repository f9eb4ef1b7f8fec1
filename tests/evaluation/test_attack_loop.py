"""AutoAttack in chunks gives the verdict of the official front end."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

from evaluation import attack_loop
from evaluation.results import PerImageResults
from tests.helpers import attacked, digits, evaluated, official, suite, tiny, trained
from utils.errors import UserError


@pytest.fixture(scope="module")
def models():
    return {
        "untrained": tiny().eval().requires_grad_(False),
        "natural": trained("tiny-natural"),
        "robust": trained("tiny-robust"),
    }


@pytest.mark.parametrize(
    "name, norm, epsilon, n",
    [
        ("untrained", "linf", 0.1, 18),
        ("untrained", "l2", 0.6, 18),
        ("natural", "linf", 0.1, 18),
        ("natural", "l2", 3.0, 18),
        ("robust", "linf", 0.1, 9),
        ("robust", "l2", 0.6, 8),
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
    if name == "robust":  # else the test would show little
        assert 0 < (ours["broken_by"] == "").sum() < n


def test_same_verdict_for_custom_attacks(models):
    """``fab`` with its five restarts shares an object with ``fab-t``, which has one."""
    x, y = digits(6)
    attacks = ["apgd-dlr", "fab", "fab-t"]
    ours = attacked(models["robust"], suite(attacks=tuple(attacks), version="custom"), x, y)
    x_adv, prediction = official(models["robust"], x, y, "Linf", 0.1, 12, attacks)
    np.testing.assert_array_equal(ours["adversarial_prediction"], prediction)
    np.testing.assert_array_equal(ours["x_adv"], x_adv)


def test_every_epsilon_is_attacked_on_its_own(models):
    attacks = suite(attacks=("apgd-ce", "apgd-dlr"), version="dev")
    curve = evaluated(models["natural"], attacks, (0.08, 0.0, 0.04), 20)
    for index, epsilon in ((0, 0.08), (2, 0.04)):
        alone = evaluated(models["natural"], replace(attacks, epsilon=epsilon), (epsilon,), 20)
        np.testing.assert_array_equal(curve.broken_by[index], alone.broken_by[0])
        np.testing.assert_array_equal(curve.adversarial_prediction[index], alone.adversarial_prediction[0])
        assert curve.accuracies(attacks.attacks, index) == alone.accuracies(attacks.attacks)
        if index == 0:
            np.testing.assert_array_equal(curve.saved_x_adv, alone.saved_x_adv)
    np.testing.assert_array_equal(curve.adversarial_prediction[1], curve.clean_prediction)
    assert set(curve.broken_by[1]) <= {"", "clean"}
    robust = curve.robust.sum(1)
    assert robust[0] <= robust[2] < robust[1]


def test_the_bar_counts_what_is_left_and_shows_accuracies_so_far(models, capsys, monkeypatch):
    monkeypatch.setattr("evaluation.attack_loop.tqdm", partial(tqdm, mininterval=0, miniters=1))  # draws every update
    attacks = suite(attacks=("apgd-ce",), version="custom", batch_size=3)
    results = evaluated(models["natural"], attacks, (0.08, 0.0), 5)
    clean, robust = (100 * (results.broken_by[0] != "clean").mean(), 100 * results.robust[0].mean())
    err = capsys.readouterr().err
    assert "0/10 " in err and "10/10 " in err and f"epsilon 0.08: clean {clean:.2f}%, robust {robust:.2f}%" in err
    results.progress[1, 1] = 1  # as if interrupted there
    results.adversarial_prediction[1, 3:] = results.clean_prediction[3:]
    evaluated(models["natural"], attacks, (0.08, 0.0), 5, results)
    assert " 8/10 " in capsys.readouterr().err


def test_seconds_left_are_of_the_work_that_is_left():
    """Two epsilons, three chunks, a clean pass and two attacks; a chunk takes 1 + 10 + 100 s at the first epsilon."""
    results = PerImageResults.empty(6, (3, 2, 2), 2, 2, num_epsilons=2)
    start = results.progress.copy()
    for chunk, steps in enumerate((3, 2, 0)):
        results.seconds[0, chunk, :steps] = [1, 10, 100][:steps]
        results.progress[0, chunk] = steps
        left = attack_loop.seconds_left(results, start, 1)
        assert left == (None if steps < 3 and chunk == 0 else pytest.approx(6 * 111 - results.seconds.sum()))
    results.seconds[1, 0], results.progress[1, 0] = [2, 20, 200], 3  # the second epsilon takes twice as long
    assert attack_loop.seconds_left(results, start, 1) == pytest.approx(100 + 111 + 2 * 222)
    resumed = results.progress.copy()
    assert attack_loop.seconds_left(results, resumed, 1) == pytest.approx(100 + 111 + 2 * 222)
    assert attack_loop.seconds_left(results, resumed, 2) == pytest.approx((100 + 111 + 2 * 222) / 2)
    results.seconds[0, 1, 2], results.progress[0, 1] = 100, 3  # by this process
    assert attack_loop.seconds_left(results, resumed, 2) == pytest.approx((100 + 111 + 2 * 222) / 2 - 100)
    results.progress[:] = 3
    assert attack_loop.seconds_left(results, results.progress, 1) == 0
    results.progress[:] = 0
    assert attack_loop.seconds_left(results, start, 1) is None


def test_out_of_memory_is_one_sentence(models, monkeypatch):
    def full(*args):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(attack_loop, "attack_chunk", full)
    with pytest.raises(UserError, match=r"12 images at once do not fit .*: pass a smaller --batch-size"):
        evaluated(models["natural"], suite(), (0.1,), 5)


def test_outputs_that_are_not_finite_are_one_sentence():
    with pytest.raises(UserError, match="outputs are not finite"):
        evaluated(nn.Sequential(nn.Flatten(), nn.Linear(768, 10)).apply(_nan), suite(), (0.1,), 5)


def _nan(module):
    if isinstance(module, nn.Linear):
        nn.init.constant_(module.bias, torch.nan)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch.cuda.is_available() is false")
def test_on_cuda(models):
    x, y = digits(12)
    on_cpu = attacked(models["natural"], suite(), x, y)
    model = tiny().requires_grad_(False).eval().cuda()
    model.load_state_dict(models["natural"].state_dict())
    on_cuda = attacked(model, suite(device="cuda"), x.cuda(), y.cuda())
    assert (on_cpu["broken_by"] == on_cuda["broken_by"]).mean() > 0.8  # a rounding may decide an image
