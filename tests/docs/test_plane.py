"""The clean-against-robust plane: which points it shows."""

import json
from types import SimpleNamespace

from results import plane
from results.records import Records


def study(**changes):
    runs = [
        {"method": "TRADES6", "seed": 1, "epsilon": 0.031, "clean": 50.0, "robust": 20.0, "images": 500},
        {"method": "TRADES6", "seed": 2, "epsilon": 0.031, "clean": 60.0, "robust": 30.0, "images": 500},
        {"method": "TRADES6", "seed": 1, "epsilon": 8 / 255, "clean": 1.0, "robust": 1.0, "images": 500},
    ]
    return {"dataset": "cifar10", "student": "wrn-10-1", "epochs": 8, "runs": runs} | changes


def test_points_of_studies_are_means_over_seeds_at_one_epsilon(tmp_path):
    for name, content in (("study-a", study()), ("study-b", study(dataset="digits"))):
        (tmp_path / "results" / name).mkdir(parents=True)
        (tmp_path / "results" / name / "study.json").write_text(json.dumps(content))
    (point,) = plane.measured(Records(tmp_path))
    assert point == plane.Point("cifar10", "TRADES6", "WRN-10-1, 8 epochs", 55.0, 25.0, 500)
    assert point.family == "TRADES"


def test_a_run_counts_with_the_standard_suite_on_enough_images():
    report = {"dataset": "cifar100", "version": "standard", "n": 1000, "epsilon": 0.031, "clean_accuracy": 46.8,
              "robust_accuracy": 19.6}  # fmt: skip
    reports = [report, report | {"n": 100}, report | {"version": "dev"}, report | {"epsilon": 0.1}]
    run = SimpleNamespace(
        reports=reports, config={"student": "resnet18", "method": "lbgat", "beta": 6.0}, epochs=[{}] * 30
    )
    records = SimpleNamespace(runs={"mine": run}, json_files=lambda pattern: {})
    (point,) = plane.measured(records)
    assert point == plane.Point("cifar100", "LBGAT6", "ResNet-18, 30 epochs", 46.8, 19.6, 1000)


def test_published_points_are_those_without_extra_data():
    points = {(p.dataset, p.method): (p.clean, p.robust) for p in plane.published(Records())}
    assert points["cifar100", "LBGAT0"] == (70.25, 27.16) and points["cifar100", "TRADES6"] == (56.5, 26.87)
    assert all(clean < 93 for clean, _ in points.values())
    assert {plane.Point("", name, "", 0, 0).family for name in ("LBGAT-AWP", "AT-AWP", "DAJAT")} == {"LBGAT", "AT", ""}


def test_the_picture(tmp_path):
    points = [plane.Point("cifar10", "AT", "", 87.1, 44.0), plane.Point("cifar10", "AT", "x", 50, 30, 500)]
    plane.draw(points, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
