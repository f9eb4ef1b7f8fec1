"""The figures of autoattack.json against slow loops, and earlier reports, which are kept."""

import json

import numpy as np
import pytest

from evaluation import summary
from evaluation.autoattack.suite import STANDARD, Suite
from evaluation.results import PerImageResults
from tests.helpers import verdicts
from utils.statistics import wilson


@pytest.mark.parametrize("num_classes, n", [(10, 200), (100, 150)])
def test_per_class_against_a_loop(num_classes, n):
    labels, clean, broken_by = verdicts(n, num_classes)
    names = [f"class {k}" for k in range(num_classes)]
    got = summary.per_class(names, labels, clean, broken_by == "")
    assert [entry["name"] for entry in got] == names and sum(entry["n"] for entry in got) == n
    for k, entry in enumerate(got):
        images = [i for i in range(n) if labels[i] == k]
        assert entry["n"] == len(images)
        if not images:
            assert entry["clean_accuracy"] is None and entry["robust_accuracy"] is None
            continue
        correct = sum(clean[i] == k for i in images)
        robust = sum(broken_by[i] == "" for i in images)
        assert entry["clean_accuracy"] == pytest.approx(100 * correct / len(images))
        assert entry["robust_accuracy"] == pytest.approx(100 * robust / len(images))
    if num_classes == 100:
        assert min(entry["n"] for entry in got) == 0  # the case occurs
    json.dumps(got)


def test_curve_against_a_loop():
    """The headline epsilon is the first of the results, and has its place in the curve."""
    epsilons, n, random = (0.1, 0, 8 / 255), 40, np.random.default_rng(0)
    per_image = PerImageResults.empty(n, (3, 2, 2), 16, len(STANDARD), len(epsilons))
    per_image.broken_by[:] = random.choice(["", "clean", *STANDARD], (3, n))
    per_image.seconds[:] = random.random(per_image.seconds.shape)
    labels = np.zeros(n, np.int64)
    suite = Suite(None, STANDARD, "linf", 0.1, 1, "standard", 16)
    results = summary.summarize(suite, per_image, epsilons, labels, ["a_b"])
    assert [point["epsilon_text"] for point in results["curve"]] == ["0", "8/255", "0.1"]
    for point, index in zip(results["curve"], (1, 2, 0), strict=True):
        assert point["epsilon"] == epsilons[index]
        robust = [by for by in per_image.broken_by[index] if by != "clean"]
        assert point["clean_accuracy"] == 100 * len(robust) / n
        for name in STANDARD:
            robust = [by for by in robust if by != name]
            assert point["accuracy_after"][name] == 100 * len(robust) / n
        assert point["robust_accuracy"] == 100 * len(robust) / n
        assert point["seconds"] == pytest.approx(sum(per_image.seconds[index].flatten().tolist()))
        for kind in ("clean", "robust"):
            assert point[f"{kind}_accuracy_95"] == wilson(round(point[f"{kind}_accuracy"] * n / 100), n)
    for key in ("clean_accuracy", "accuracy_after", "robust_accuracy", "robust_accuracy_95"):
        assert results[key] == results["curve"][2][key]
    assert results["seconds"]["total"] == pytest.approx(results["curve"][2]["seconds"])
    assert results["per_class"][0]["name"] == "a b"
    assert "curve" not in summary.summarize(suite, per_image, epsilons[:1], labels, ["a_b"])
    json.dumps(results)


def test_throughput_counts_the_images_that_each_attack_was_given():
    broken_by = np.array(["clean"] * 2 + ["apgd-ce"] * 3 + ["square"] + [""] * 4)
    seconds = {"clean": 0.5, "apgd-ce": 2.0, "apgd-t": 4.0, "fab-t": 0.0, "square": 5.0, "total": 11.5}
    got = summary.throughput(STANDARD, broken_by, seconds)
    assert got == {
        "total": 10 / 11.5, "clean": 20.0, "apgd-ce": 4.0, "apgd-t": 1.25, "fab-t": None, "square": 1.0,
    }  # fmt: skip
    assert summary.throughput(STANDARD, broken_by, seconds, processes=3)["apgd-ce"] == 12.0
    nothing_left = summary.throughput(("apgd-ce", "square"), np.array(["apgd-ce"]), seconds)
    assert nothing_left["square"] is None


def test_only_the_standard_suite_is_called_standard():
    labels = {version: summary.suite_label(version) for version in ("standard", "dev", "custom", "plus", "rand")}
    assert labels["standard"] == "standard AutoAttack" and labels["dev"] == labels["custom"] == "upper bound"
    assert labels["plus"] == "at least the standard AutoAttack" and "randomized" in labels["rand"]


def report_of(folder, name="autoattack.json", **content):
    (folder / name).write_text(json.dumps({"epsilon": 0.1, "date": "2026-11-22T16:20:21+00:00", **content}))


def test_an_earlier_report_is_moved_with_its_pictures(tmp_path):
    for name in summary.FILES:
        (tmp_path / name).write_text(f"{name} of the earlier evaluation")
    report_of(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in summary.FILES}
    assert summary.keep_earlier(tmp_path, {"epsilon": 0.1, "plain": False}) is None  # the same evaluation
    assert summary.keep_earlier(tmp_path, {"epsilon": 0.2, "plain": False}) == tmp_path / "earlier-20261122162021"
    assert {path.name: path.read_bytes() for path in (tmp_path / "earlier-20261122162021").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["earlier-20261122162021"]
    assert summary.keep_earlier(tmp_path, {"epsilon": 0.2, "plain": False}) is None


def test_no_earlier_report_is_overwritten(tmp_path):
    """Of three reports of one second each is kept; one that a kill left half moved stays together."""
    for epsilon in (0.1, 0.2, 0.3):
        report_of(tmp_path, epsilon=epsilon)
        summary.keep_earlier(tmp_path, {"epsilon": 1})
    folders = sorted(tmp_path.iterdir())
    assert [folder.name[22:] for folder in folders] == ["", "-2", "-3"]
    epsilons = [json.loads((folder / "autoattack.json").read_text())["epsilon"] for folder in folders]
    assert epsilons == [0.1, 0.2, 0.3]
    (folders[2] / "autoattack.json").rename(tmp_path / "autoattack.json")
    (folders[2] / "report.md").write_text("moved before the kill")
    assert summary.keep_earlier(tmp_path, {"epsilon": 1}) == folders[2]
    assert sorted(path.name for path in folders[2].iterdir()) == ["autoattack.json", "report.md"]


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[1]", "{}", '{"date": 3}', "\xff"])
def test_a_strange_report_is_kept_too(tmp_path, text):
    (tmp_path / "autoattack.json").write_bytes(text.encode("latin-1"))
    kept = summary.keep_earlier(tmp_path, {"epsilon": 1})
    assert (kept / "autoattack.json").read_bytes() == text.encode("latin-1")


def test_a_plain_evaluation_is_another_evaluation(tmp_path):
    report_of(tmp_path)  # of a version that knew nothing of --plain
    assert summary.keep_earlier(tmp_path, {"epsilon": 0.1, "plain": False}) is None
    assert summary.keep_earlier(tmp_path, {"epsilon": 0.1, "plain": True}) is not None
