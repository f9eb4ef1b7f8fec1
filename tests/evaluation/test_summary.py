"""The figures of autoattack.json against slow loops, what is kept of earlier reports, and the suite's warnings."""

import json
import warnings

import numpy as np
import pytest
from pyautoattack import checks

from evaluation import summary as report
from evaluation.autoattack.log import of_each_kind, suite_log
from evaluation.autoattack.suite import LOGGER, STANDARD, Suite
from evaluation.results import PerImageResults
from tests.helpers import verdicts
from utils.statistics import wilson


@pytest.mark.parametrize("num_classes, n", [(10, 200), (100, 150)])
def test_per_class_against_a_loop(num_classes, n):
    labels, clean, broken_by = verdicts(n, num_classes)
    names = [f"class {k}" for k in range(num_classes)]
    got = report.per_class(names, labels, clean, broken_by == "")
    assert [of["name"] for of in got] == names and sum(of["n"] for of in got) == n
    for k, of in enumerate(got):
        images = [i for i in range(n) if labels[i] == k]
        assert of["n"] == len(images)
        if not images:
            assert of["clean_accuracy"] is None and of["robust_accuracy"] is None
            continue
        right = sum(clean[i] == k for i in images)
        robust = sum(broken_by[i] == "" for i in images)
        assert of["clean_accuracy"] == pytest.approx(100 * right / len(images))
        assert of["robust_accuracy"] == pytest.approx(100 * robust / len(images))
    if num_classes == 100:
        assert min(of["n"] for of in got) == 0  # the case was met
    json.dumps(got)


def test_curve_against_a_loop():
    """The headline is the first of the outcomes' epsilons, and stands in its place in the curve."""
    epsilons, n, random = (0.1, 0, 8 / 255), 40, np.random.default_rng(0)
    outcomes = PerImageResults.empty(np.zeros((n, 2, 2, 3), np.uint8), 16, len(STANDARD), len(epsilons))
    outcomes.broken_by[:] = random.choice(["", "clean", *STANDARD], (3, n))
    outcomes.seconds[:] = random.random(outcomes.seconds.shape)
    labels = np.zeros(n, np.int64)
    suite = Suite(None, STANDARD, "linf", 0.1, 1, "standard", 16)
    results = report.results(suite, outcomes, epsilons, labels, ["a_b"])
    assert [point["epsilon_text"] for point in results["curve"]] == ["0", "8/255", "0.1"]
    for point, index in zip(results["curve"], (1, 2, 0), strict=True):
        assert point["epsilon"] == epsilons[index]
        left = [by for by in outcomes.broken_by[index] if by != "clean"]
        assert point["clean_accuracy"] == 100 * len(left) / n
        for name in STANDARD:
            left = [by for by in left if by != name]
            assert point["accuracy_after"][name] == 100 * len(left) / n
        assert point["robust_accuracy"] == 100 * len(left) / n
        assert point["seconds"] == pytest.approx(sum(outcomes.seconds[index].flatten().tolist()))
        for kind in ("clean", "robust"):
            assert point[f"{kind}_accuracy_95"] == wilson(round(point[f"{kind}_accuracy"] * n / 100), n)
    for key in ("clean_accuracy", "accuracy_after", "robust_accuracy", "robust_accuracy_95"):
        assert results[key] == results["curve"][2][key]
    assert results["seconds"]["total"] == pytest.approx(results["curve"][2]["seconds"])
    assert results["per_class"][0]["name"] == "a b"
    assert "curve" not in report.results(suite, outcomes, epsilons[:1], labels, ["a_b"])
    json.dumps(results)


def test_throughput_counts_the_images_that_each_attack_was_given():
    broken_by = np.array(["clean"] * 2 + ["apgd-ce"] * 3 + ["square"] + [""] * 4)
    seconds = {"clean": 0.5, "apgd-ce": 2.0, "apgd-t": 4.0, "fab-t": 0.0, "square": 5.0, "total": 11.5}
    got = report.throughput(STANDARD, broken_by, seconds)
    assert got == {
        "total": 10 / 11.5, "clean": 20.0, "apgd-ce": 4.0, "apgd-t": 1.25, "fab-t": None, "square": 1.0,
    }  # fmt: skip
    assert report.throughput(STANDARD, broken_by, seconds, processes=3)["apgd-ce"] == 12.0
    nothing_left = report.throughput(("apgd-ce", "square"), np.array(["apgd-ce"]), seconds)
    assert nothing_left["square"] is None


def test_only_the_standard_suite_is_the_standard_claim():
    claims = {version: report.claim(version) for version in ("standard", "dev", "custom", "plus", "rand")}
    assert claims["standard"] == "standard AutoAttack" and claims["dev"] == claims["custom"] == "upper bound"
    assert claims["plus"] == "at least the standard AutoAttack" and "randomized" in claims["rand"]


def test_warnings_of_each_kind_come_once(tmp_path, capsys):
    path, warned = tmp_path / "autoattack.log", []
    with suite_log(path, resumed=False, warn=warned.append):
        LOGGER.warning("there are 3 points with zero gradient!")
        LOGGER.warning("there are 17 points with zero gradient!")
        LOGGER.info("robust accuracy after APGD-CE: WARNING 3%")
    with suite_log(path, resumed=True, warn=warned.append):
        LOGGER.warning("Square Attack has decreased the robust accuracy of 0.53%.")
    assert of_each_kind(warned) == [
        "there are 3 points with zero gradient!", "Square Attack has decreased the robust accuracy of 0.53%.",
    ]  # fmt: skip
    assert capsys.readouterr().err.count("zero gradient") == 1
    assert path.read_text().count("WARNING there are") == 2
    with suite_log(None, resumed=False, warn=warned.append):  # a process that does not print
        LOGGER.warning("another")
    assert warned[-1] == "another" and capsys.readouterr().err == "" and "another" not in path.read_text()
    assert LOGGER.handlers == []


def test_warnings_of_the_authors_package_are_taken_in_too(tmp_path, recwarn):
    """It calls warnings.warn instead of a logger; those of others are left alone."""
    warned, acc = [], {"clean": 0.9, "apgd-ce": 0.5, "square": 0.4}
    with suite_log(tmp_path / "autoattack.log", resumed=False, warn=warned.append):
        checks.check_square_sr(acc)
        warnings.warn("of torch", UserWarning, stacklevel=1)
    (warning,) = warned
    assert warning.startswith("Square Attack has decreased the robust accuracy of 10.00%")
    checks.check_square_sr({**acc, "square": 0.3})  # nothing of it outside
    assert len(warned) == 1
    assert [str(shown.message)[:8] for shown in recwarn] == ["of torch", "Square A"]


def test_an_earlier_report_is_kept_with_its_pictures(tmp_path):
    for name in report.FILES:
        (tmp_path / name).write_text(f"{name} of the earlier evaluation")
    (tmp_path / "autoattack.json").write_text(json.dumps({"epsilon": 0.1, "date": "2026-11-22T16:20:21+00:00"}))
    (tmp_path / "report.md").write_text("![a](classes.png) ![b](curve.png) [c](https://example.org) (classes.png)")
    assert report.keep_earlier(tmp_path, {"epsilon": 0.1}) is None  # the same evaluation: nothing to keep
    assert report.keep_earlier(tmp_path, {"epsilon": 0.2}) == "autoattack-20261122162021.json"
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == sorted(name.replace(".", "-20261122162021.") for name in report.FILES)
    assert (tmp_path / "report-20261122162021.md").read_text() == (
        "![a](classes-20261122162021.png) ![b](curve-20261122162021.png) [c](https://example.org) (classes.png)"
    )
    assert report.keep_earlier(tmp_path, {"epsilon": 0.2}) is None
