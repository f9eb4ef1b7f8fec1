"""Per-image results: merged whatever the order, and refused where a file does not fit."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from evaluation.attack_loop import attack_chunk
from evaluation.results import AttackResult, PerImageResults
from tests.helpers import DIGITS, assert_same_results, digits, official, suite, trained
from utils.errors import UserError


def empty(max_saved=3, n=10):
    return PerImageResults.empty(n, (3, 16, 16), 4, 2, 2, max_saved)


def test_results_of_processes_are_merged_whatever_the_order():
    model, epsilons = trained("tiny-natural"), (0.08, 0.1)
    attacks = suite(attacks=("apgd-ce", "apgd-dlr"), version="custom", batch_size=4)
    x, y = digits(10)
    steps = {
        (epsilon, chunk): list(attack_chunk(model, replace(attacks, epsilon=epsilons[epsilon]), x[part], y[part]))
        for epsilon in range(2)
        for chunk, part in enumerate([slice(0, 4), slice(4, 8), slice(8, 10)])
    }
    random = np.random.default_rng(0)
    for max_saved in (3, 10):
        whole = empty(max_saved)
        for job, job_steps in steps.items():
            for step in job_steps:
                whole.add(*job, step)
        members = [empty(max_saved) for _ in range(3)]
        for job in random.permutation(list(steps)):
            for member, done in zip(random.permutation(3), (3, 2, 0), strict=True):  # one finished another's job
                for step in steps[tuple(job)][:done]:
                    members[member].add(*job, step)
        members[1].warn("b"), members[2].warn("a"), members[2].warn("b")
        for member in members[1:]:
            members[0].merge(member)
        assert members[0].warnings.tolist() == ["a", "b"]
        members[0].warnings = whole.warnings
        assert_same_results(members[0], whole)
        broken = [i for i in range(10) if whole.broken_by[0, i] not in ("", "clean")]
        assert whole.saved_index.tolist() == broken[:max_saved] and len(broken) > 3
    x_adv, _ = official(model, x, y, "Linf", 0.08, 4, ["apgd-ce", "apgd-dlr"])
    clean = x.numpy().copy()
    np.testing.assert_array_equal(whole.x_adv(clean), x_adv)
    np.testing.assert_array_equal(clean, x.numpy())


def filled():
    """Results with something in every array."""
    results = empty()
    results.add(0, 0, AttackResult("clean", np.array([1, 2, 3, 4]), np.array([False, False, True, False]), None, 0.5))
    x_adv = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    results.add(0, 0, AttackResult("apgd-ce", np.array([7, 2, 3, 4]), np.arange(4) == 0, x_adv, 1.5))
    results.warn("look out")
    return results


def test_results_survive_a_file_and_bytes(tmp_path):
    results = filled()
    results.save(tmp_path / "state.npz", {"seed": 3})
    for source in (tmp_path / "state.npz", results.to_bytes({"seed": 3})):
        loaded = PerImageResults.load(source, {"seed": 3}, empty())
        assert_same_results(loaded, results)
        np.testing.assert_array_equal(loaded.seconds, results.seconds)
        loaded.add(1, 2, AttackResult("clean", np.array([1, 2]), np.zeros(2, bool), None, 0.5))  # writable
    with pytest.raises(UserError, match=r"state\.npz is of another, unfinished evaluation \(seed 3 there and 4 here\)"):
        PerImageResults.load(tmp_path / "state.npz", {"seed": 4}, empty())


def test_results_that_do_not_fit_are_one_sentence():
    """Arrays of other shapes, types or ranges; every field in turn."""
    good, changes = filled(), []
    for field in dataclasses.fields(PerImageResults):
        array = np.asarray(getattr(good, field.name))
        changes += [(field.name, array.astype("S")), (field.name, array[None])]
        if array.ndim and field.name not in ("saved_index", "saved_x_adv", "warnings"):
            changes.append((field.name, array[:-1]))
    changes += [
        ("saved_index", np.array([10])), ("saved_index", np.array([-1])), ("saved_index", np.array([1, 2])),
        ("progress", good.progress + 3), ("progress", good.progress - 1), ("batch_size", 5),
        ("clean_prediction", np.array([object()] * 10)),
    ]  # fmt: skip
    for name, value in changes:
        broken = replace(good, **{name: value})
        with pytest.raises(UserError, match="the state is damaged, cannot resume: delete it"):
            PerImageResults.load(broken.to_bytes({}), {}, empty(), "the state")
    for data in (b"", b"torn", good.to_bytes({})[:500]):
        with pytest.raises(UserError, match="the state is damaged"):
            PerImageResults.load(data, {}, empty(), "the state")


def test_an_image_is_robust_until_an_attack_breaks_it():
    results = filled()
    assert results.accuracies(("apgd-ce", "apgd-dlr")) == {"clean": 90.0, "apgd-ce": 80.0, "apgd-dlr": 80.0}
    assert results.robust[0].tolist() == [False, True, False] + [True] * 7
    assert results.unfinished.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    x = np.transpose(DIGITS.x_test[:10], (0, 3, 1, 2)) / np.float32(255)
    changed = (results.x_adv(x) != x).reshape(10, -1).any(1)
    assert changed.tolist() == [True] + [False] * 9
