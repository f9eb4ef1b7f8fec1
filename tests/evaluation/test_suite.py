"""One attack of the suite on fast, watched queries gives the front end's verdict on every image."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pyautoattack
import pytest
import torch
from torch import nn

from benchmarks import autoattack as benchmark
from evaluation.autoattack.attacked_model import AttackedModel, _Differentiable, margin
from evaluation.autoattack.suite import LOGGER, SUITES, Suite, choose_attacks
from models import create_model
from models.weights import load_file, student_state
from tests.helpers import ROOT, attacked, digits, tiny, trained

QUICKSTART = str(ROOT / "checkpoints" / "quickstart-digits.pt")
NAMES = {"linf": "Linf", "l2": "L2"}


class Short(pyautoattack.AutoAttack):
    """The authors' front end with less of what costs time: test_autoattack.py has the whole."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.square.n_queries = 125
        self.apgd_targeted.n_target_classes = self.fab.n_target_classes = 3
        self.apgd.eot_iter = min(self.apgd.eot_iter, 3)
        self.fab.n_restarts = min(self.fab.n_restarts, 2)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 50


PACKAGE = SimpleNamespace(__name__="pyautoattack", AutoAttack=Short)


def quickstart():
    """The robust wrn-10-1 that ships."""
    model = create_model("wrn-10-1", 10)
    model.load_state_dict(student_state(load_file(QUICKSTART), QUICKSTART))
    return model.eval()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {
        "untrained": tiny().eval(),
        "natural": trained("tiny-natural"),
        "robust": trained("tiny-robust"),
        "wrn": quickstart(),
    }


def suite(norm, epsilon, version="standard", attacks=None):
    return Suite(PACKAGE, attacks or SUITES[version], norm, epsilon, 3, version, 100)


def official(model, suite, x, y):
    """What the front end makes of the images: adversarial ones and what they are taken for."""
    settings = {"norm": NAMES[suite.norm], "eps": suite.epsilon, "seed": suite.seed}
    if suite.version == "custom":
        settings |= {"version": "custom", "attacks": list(suite.attacks)}
    front_end = Short(model, **{"version": "standard" if suite.version == "dev" else suite.version, **settings})
    if suite.version == "dev":
        front_end.attacks_to_run = ["apgd-ce", "apgd-t"]
    return front_end.run_standard_evaluation(x, y, batch_size=len(x))


CASES = [
    ("untrained", "linf", 0.1, "standard", 30),
    ("untrained", "l2", 0.6, "standard", 30),
    ("natural", "linf", 0.03, "standard", 20),
    ("natural", "l2", 0.3, "standard", 20),
    ("robust", "linf", 0.1, "standard", 30),
    ("robust", "l2", 0.7, "standard", 30),
    ("wrn", "linf", 0.15, "standard", 4),
    ("wrn", "l2", 1.0, "dev", 12),
    ("robust", "linf", 0.11, "dev", 40),
    ("robust", "linf", 0.08, "rand", 10),
    ("robust", "l2", 0.6, "plus", 12),
]


@pytest.mark.parametrize("name, norm, epsilon, version, n", CASES)
def test_same_verdict_as_the_front_end(models, name, norm, epsilon, version, n):
    """And from fewer rows, the earlier images leave; the adversarial images may be others, as good."""
    x, y = digits(n)
    model, chosen = models[name], suite(norm, epsilon, version)
    x_adv, prediction = official(model, chosen, x, y)
    queries = AttackedModel(model)
    ours = attacked(queries, chosen, x, y)
    np.testing.assert_array_equal(ours["broken_by"] == "", prediction == y)
    found = torch.from_numpy(ours["x_adv"])
    assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()
    distance = torch.linalg.vector_norm((found - x).flatten(1), np.inf if norm == "linf" else 2, dim=1)
    assert distance.max() <= epsilon + 1e-6
    with torch.no_grad():
        np.testing.assert_array_equal(model(found).argmax(1), ours["adversarial_prediction"])
    fell = (ours["broken_by"] != "") & (ours["broken_by"] != "clean")
    assert fell.any()
    if name in ("robust", "wrn"):  # the test would be worth little if all fell
        assert (ours["broken_by"] == "").any()
    if name == "wrn":
        return
    everything = AttackedModel(model, leaving=False)  # with nothing to fold either: the very same numbers
    ours = attacked(everything, chosen, x, y)
    np.testing.assert_array_equal(ours["adversarial_prediction"], prediction)
    np.testing.assert_array_equal(ours["x_adv"], x_adv)
    assert queries.rows == everything.rows if version == "rand" else queries.rows < everything.rows


@pytest.mark.parametrize("attack, norm, epsilon", [("fab-t", "linf", 0.1), ("fab", "l2", 0.7)])
def test_settled_images_leave_fab(models, attack, norm, epsilon):
    """They make zero gradients, so that FAB divides by zero there; nobody else's verdict may change by it."""
    x, y = digits(12)
    chosen = suite(norm, epsilon, "custom", (attack,))
    x_adv, prediction = official(models["robust"], chosen, x, y)
    queries = AttackedModel(models["robust"])
    ours = attacked(queries, chosen, x, y)
    np.testing.assert_array_equal(ours["broken_by"] == "", prediction == y)
    stood = ours["broken_by"] != attack
    assert 1 <= stood.sum() < 11
    np.testing.assert_array_equal(ours["x_adv"][stood], x_adv[stood.nonzero()])
    assert np.isfinite(ours["x_adv"]).all()
    everything = AttackedModel(models["robust"], leaving=False)
    attacked(everything, chosen, x, y)
    assert queries.rows < everything.rows


def test_attack_ends_when_every_image_has_left(models):
    x, y = digits(20)
    right = models["natural"](x).argmax(1) == y
    queries = AttackedModel(models["natural"])
    chosen = suite("linf", 0.5, "custom", ("apgd-ce", "apgd-t", "fab", "fab-t", "apgd-dlr"))
    for attack in chosen.attacks:
        rows = queries.rows
        x_adv, prediction = chosen.run(chosen.start(queries), attack, x[right], y[right])
        assert (prediction != y[right]).all() and (queries(x_adv).argmax(1) == prediction).all()
        if attack.startswith("apgd"):
            assert queries.rows - rows < 10 * right.sum()  # of 100 iterations and more


def test_folding_costs_at_most_a_rounding(models):
    """What either finds, the plain network takes for something wrong as well."""
    x, y = digits(12)
    chosen, found = suite("linf", 0.15, "custom", ("apgd-ce",)), []
    for fold in (True, False):
        ours = attacked(AttackedModel(models["wrn"], fold=fold), chosen, x, y)
        found.append(ours["broken_by"] != "")
        assert (margin(models["wrn"](torch.from_numpy(ours["x_adv"])), y)[found[-1]] > 0).all()
    np.testing.assert_array_equal(*found)
    assert 3 <= found[0].sum() <= 9


def test_low_precision_finds_as_much_and_float32_decides(models):
    x, y = digits(30)
    chosen = suite("linf", 0.1, "custom", ("apgd-ce", "square"))
    ours = attacked(AttackedModel(models["robust"], precision="bf16"), chosen, x, y)
    _, prediction = official(models["robust"], chosen, x, y)
    with torch.no_grad():
        taken_for = models["robust"](torch.from_numpy(ours["x_adv"])).argmax(1)
    np.testing.assert_array_equal(taken_for, ours["adversarial_prediction"])
    assert abs((ours["broken_by"] == "").sum() - (prediction == y).sum()) <= 1


def test_fab_after_fab_t_has_one_restart(models):
    """As in the front end, where one object serves both; also if an evaluation goes on between the two."""
    x, y = digits(4)
    for order, restarts in ((("fab", "fab-t"), [2, 1]), (("fab-t", "fab"), [1, 1])):
        chosen = suite("linf", 0.5, "custom", order)
        for attack, expected in zip(order, restarts, strict=True):
            front_end = chosen.start(AttackedModel(models["robust"]))
            chosen.run(front_end, attack, x, y)
            assert front_end.fab.n_restarts == expected


def test_versions_are_the_packages(models):
    for version in ("standard", "plus", "rand"):
        assert list(choose_attacks(version, "")) == pyautoattack.AutoAttack(tiny(), version=version).attacks_to_run
    assert choose_attacks("dev", "") == ("apgd-ce", "apgd-t")
    ours = suite("linf", 0.1, "dev").start(tiny())
    standard = pyautoattack.AutoAttack(tiny())
    for name in ("apgd", "apgd_targeted"):
        for setting in ("n_restarts", "eot_iter"):
            assert getattr(getattr(ours, name), setting) == getattr(getattr(standard, name), setting)
    assert suite("linf", 0.1, "rand").start(tiny()).apgd.eot_iter == 3


def messages(model, chosen):
    """What the suite logs and warns of in the first attack, and in the second."""
    x, y = digits(6)
    y = model(x).argmax(1)
    records, handler, level = [], logging.Handler(), LOGGER.level
    handler.emit = lambda record: records.append(record.getMessage())
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    try:
        front_end = chosen.start(AttackedModel(model))
        for attack in chosen.attacks:
            chosen.run(front_end, attack, x, y)
            yield records.copy()
            records.clear()
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)


def test_suites_own_checks_run_once_a_chunk(models, recwarn):
    chosen = suite("linf", 0.02, "custom", ("apgd-ce", "square"))
    lines = list(messages(nn.Sequential(models["robust"], nn.Softmax(1)), chosen))
    assert [line[0] for line in lines] == ["running apgd-ce", "running square"]
    assert all("out of 6 successfully perturbed" in line[-1] for line in lines)
    told = [str(w.message) for w in recwarn]
    assert len(told) == 1 and "the output is a probability distribution" in told[0]


def test_suites_own_checks_reach_the_user(models, recwarn):
    class Random(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + torch.randn(6, 10)

    for model, version, warning in (
        (Random(models["robust"]), "dev", "randomized defense"),
        (Random(models["robust"]), "rand", None),
        (nn.Sequential(models["robust"][:-1], nn.Linear(128, 3)), "dev", "with only 3 classes"),
    ):
        recwarn.clear()
        next(messages(model, suite("linf", 0.02, version)))
        assert [warning in str(w.message) for w in recwarn if warning] == [True] * (warning is not None)


def test_zero_gradients_are_told_of(models):
    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward((x * 8).round() / 8)

    lines = list(messages(Masked(models["robust"]), suite("linf", 0.01, "custom", ("apgd-dlr",))))
    assert any("6 points with zero gradient" in line for line in lines[0])


def test_benchmark_compares_the_two(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pyautoattack, "AutoAttack", Short)
    for owner, name in (
        (Suite, "_check"), (_Differentiable, "backward"),
        (pyautoattack.fab_base, "projection_linf"), (pyautoattack.fab_base, "projection_l2"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, getattr(owner, name))  # timed there, and put back after the test
    flags = ["--checkpoint", QUICKSTART, "--n", "3", "--batch-size", "2", "--epsilon", "0.25", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["autoattack.py", *flags])
    benchmark.main()
    figures = json.loads((tmp_path / "autoattack.json").read_text())
    assert figures["images"] == 3 and figures["differences"] == []
    assert figures["robust"]["ours"] == figures["robust"]["front end"]
    assert 0 < figures["ours"]["rows"] < figures["front end"]["rows"]
    steps = ["clean", *SUITES["standard"]]
    assert list(figures["ours"]["seconds"]) == steps == list(figures["ours"]["profile"])
    assert set(figures["front end"]["seconds"]) <= set(steps)
    for step in steps:  # the parts make up the whole
        assert sum(figures["ours"]["profile"][step].values()) == pytest.approx(figures["ours"]["seconds"][step])
    text = (tmp_path / "autoattack.md").read_text()
    assert capsys.readouterr().out == text
    assert f" **{figures['ratio']:.2f}** |" in text and "0 verdicts differ" in text
