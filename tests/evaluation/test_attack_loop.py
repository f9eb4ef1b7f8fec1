"""AutoAttack in chunks gives the verdict of the official front end."""

import logging
import re
from dataclasses import fields, replace

import numpy as np
import pyautoattack
import pytest
import torch

from evaluation.attack_loop import attack_chunk, evaluate
from evaluation.autoattack import suite as suites
from evaluation.autoattack.suite import STANDARD, Suite, choose_attacks
from evaluation.results import PerImageResults
from tests.helpers import DIGITS, attacked, digits, official, suite, tiny, trained
from utils.distributed import Team
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
        assert 0 < (ours["broken_by"] == "").sum() < n


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


def first(n):
    return replace(DIGITS, x_test=DIGITS.x_test[:n], y_test=DIGITS.y_test[:n])


def evaluated(model, suite, epsilons, data, outcomes=None, save=lambda: None):
    outcomes = outcomes or PerImageResults.empty(data.x_test, suite.batch_size, len(suite.attacks), len(epsilons), 3)
    evaluate(model, suite, epsilons, data, outcomes, save, Team())
    return outcomes


def assert_same(ours, theirs):
    for field in fields(PerImageResults):
        if field.name != "seconds":
            np.testing.assert_array_equal(getattr(ours, field.name), getattr(theirs, field.name), field.name)


def test_an_evaluation_goes_on_after_any_step(models, tmp_path, monkeypatch):
    """No attack runs twice, and the outcomes are those of an evaluation that nobody stopped."""
    attacks = suite(attacks=("apgd-ce", "apgd-dlr"), version="dev", batch_size=4)
    calls, run = [], Suite.run
    monkeypatch.setattr(Suite, "run", lambda self, *args: calls.append(args[1]) or run(self, *args))
    data, path, epsilons = first(6), tmp_path / "state.npz", (0.05, 0.0)
    whole = evaluated(models["natural"], attacks, epsilons, data)
    in_one_go = calls.copy()
    assert whole.progress.tolist() == [[3, 3], [3, 3]] and whole.finished == 4
    for stop in range(1, 6):
        saves, half_way = [], PerImageResults.empty(data.x_test, 4, 2, 2, 3)

        def save(saves=saves, half_way=half_way, stop=stop):
            half_way.save(path, {"seed": 3})
            saves.append(1)
            if len(saves) == stop:
                raise KeyboardInterrupt

        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluated(models["natural"], attacks, epsilons, data, half_way, save)
        loaded = PerImageResults.load(path, {"seed": 3})
        assert loaded.progress.sum() == stop
        assert_same(evaluated(models["natural"], attacks, epsilons, data, loaded), whole)
        assert calls == in_one_go


def test_every_epsilon_is_attacked_on_its_own(models):
    attacks, data = suite(attacks=("apgd-ce", "apgd-dlr"), version="dev"), first(20)
    curve = evaluated(models["natural"], attacks, (0.08, 0.0, 0.04), data)
    for index, epsilon in ((0, 0.08), (2, 0.04)):
        alone = evaluated(models["natural"], replace(attacks, epsilon=epsilon), (epsilon,), data)
        np.testing.assert_array_equal(curve.broken_by[index], alone.broken_by[0])
        np.testing.assert_array_equal(curve.adversarial_prediction[index], alone.adversarial_prediction[0])
        assert curve.accuracies(attacks.attacks, index) == alone.accuracies(attacks.attacks)
        if index == 0:
            np.testing.assert_array_equal(curve.kept_x_adv, alone.kept_x_adv)
    np.testing.assert_array_equal(curve.adversarial_prediction[1], curve.clean_prediction)
    assert set(curve.broken_by[1]) <= {"", "clean"} and curve.seconds[1, :, 1:].max() < 0.01
    robust = curve.robust.sum(1)
    assert robust[0] < robust[2] < robust[1]  # the test would be worth little otherwise


def test_what_processes_did_is_merged_whatever_the_order(models):
    model, data, epsilons = models["natural"], first(10), (0.08, 0.1)
    attacks = suite(attacks=("apgd-ce", "apgd-dlr"), version="custom", batch_size=4)
    x, y = digits(10)
    steps = {
        (epsilon, chunk): list(attack_chunk(model, replace(attacks, epsilon=epsilons[epsilon]), x[part], y[part]))
        for epsilon in range(2)
        for chunk, part in enumerate([slice(0, 4), slice(4, 8), slice(8, 10)])
    }
    random = np.random.default_rng(0)
    for keep in (3, 10):
        whole = PerImageResults.empty(data.x_test, 4, 2, 2, keep)
        for job, of_job in steps.items():
            for step in of_job:
                whole.add(*job, step)
        members = [PerImageResults.empty(data.x_test, 4, 2, 2, keep) for _ in range(3)]
        for job in random.permutation(list(steps)):
            for member, done in zip(random.permutation(3), (3, 2, 0), strict=True):  # one finished what another began
                for step in steps[tuple(job)][:done]:
                    members[member].add(*job, step)
        members[1].warn("b"), members[2].warn("a"), members[2].warn("b")
        for member in members[1:]:
            members[0].merge(member)
        assert members[0].warnings.tolist() == ["a", "b"]
        members[0].warnings = whole.warnings
        assert_same(members[0], whole)
        broken = [i for i in range(10) if whole.broken_by[0, i] not in ("", "clean")]
        assert whole.kept_index.tolist() == broken[:keep] and len(broken) > 3
    x_adv, _ = official(model, x, y, "Linf", 0.08, 4, ["apgd-ce", "apgd-dlr"])
    np.testing.assert_array_equal(whole.x_adv(data.x_test), x_adv)


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
