"""The suite on an ``AttackedModel`` gives the front end's verdict on every image, and passes its warnings on."""

import importlib
import logging
import sys
import types

import numpy as np
import pyautoattack
import pytest
import torch
from torch import nn

from evaluation.autoattack.attacked_model import AttackedModel
from evaluation.autoattack.early_exit import margin
from evaluation.autoattack.suite import LOGGER, STANDARD, SUITES, choose_attacks, find_package
from models import create_model
from models.checkpoint import find_weights
from models.weights import load_file
from tests.helpers import ROOT, attacked, digits, official, short_package, short_run, suite, tiny, trained
from utils.errors import UserError

QUICKSTART = str(ROOT / "checkpoints" / "quickstart-digits.pt")


def quickstart():
    """The robust wrn-10-1 that ships."""
    model = create_model("wrn-10-1", 10)
    model.load_state_dict(find_weights(load_file(QUICKSTART), QUICKSTART).state)
    return model.eval()


@pytest.fixture(scope="module")
def models():
    """In the memory order that ``AttackedModel`` gives a network: another rounds differently on some processors."""
    torch.manual_seed(0)
    networks = {
        "untrained": tiny().eval(),
        "natural": trained("tiny-natural"),
        "robust": trained("tiny-robust"),
        "wrn": quickstart(),
    }
    return {name: network.to(memory_format=torch.channels_last) for name, network in networks.items()}


def short_suite(norm, epsilon, version="standard", attacks=None, **kwargs):
    return suite(norm, epsilon, attacks or SUITES[version], version, 100, short_package(), **kwargs)


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
    """And with fewer images forwarded; the adversarial examples may be others, as good."""
    x, y = digits(n)
    model, chosen = models[name], short_suite(norm, epsilon, version)
    x_adv, prediction = short_run(model, chosen, x, y)
    attacked_model = AttackedModel(model)
    ours = attacked(attacked_model, chosen, x, y)
    np.testing.assert_array_equal(ours["broken_by"] == "", prediction == y)
    found = torch.from_numpy(ours["x_adv"])
    assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()
    distance = torch.linalg.vector_norm((found - x).flatten(1), np.inf if norm == "linf" else 2, dim=1)
    assert distance.max() <= epsilon + 1e-6
    with torch.no_grad():
        np.testing.assert_array_equal(model(found).argmax(1), ours["adversarial_prediction"])
    broken = (ours["broken_by"] != "") & (ours["broken_by"] != "clean")
    assert broken.any()
    if name in ("robust", "wrn"):  # the test would show little if all were broken
        assert (ours["broken_by"] == "").any()
    if name == "wrn":
        return
    to_the_end = AttackedModel(model, early_exit=False)  # nothing to fold either: the very same numbers
    ours = attacked(to_the_end, chosen, x, y)
    np.testing.assert_array_equal(ours["adversarial_prediction"], prediction)
    np.testing.assert_array_equal(ours["x_adv"], x_adv)
    assert (attacked_model.num_forwarded == to_the_end.num_forwarded) == (version == "rand")
    assert attacked_model.num_forwarded <= to_the_end.num_forwarded


def test_folding_costs_at_most_a_rounding(models):
    """What either finds, the plain network misclassifies as well."""
    x, y = digits(12)
    chosen, found = short_suite("linf", 0.15, "custom", ("apgd-ce",)), []
    for fold in (True, False):
        ours = attacked(AttackedModel(models["wrn"], fold=fold), chosen, x, y)
        found.append(ours["broken_by"] != "")
        assert (margin(models["wrn"](torch.from_numpy(ours["x_adv"])), y)[found[-1]] > 0).all()
    np.testing.assert_array_equal(*found)
    assert 0 < found[0].sum() < 12


def test_low_precision_finds_as_much_and_float32_decides(models):
    x, y = digits(30)
    chosen = short_suite("linf", 0.1, "custom", ("apgd-ce", "square"))
    ours = attacked(AttackedModel(models["robust"], precision="bf16"), chosen, x, y)
    _, prediction = short_run(models["robust"], chosen, x, y)
    with torch.no_grad():
        predicted = models["robust"](torch.from_numpy(ours["x_adv"])).argmax(1)
    np.testing.assert_array_equal(predicted, ours["adversarial_prediction"])
    assert abs((ours["broken_by"] == "").sum() - (prediction == y).sum()) <= 1


def test_fab_after_fab_t_has_one_restart(models):
    """As in the front end, where one object serves both; also if an evaluation resumes between the two."""
    x, y = digits(4)
    for order, restarts in ((("fab", "fab-t"), [2, 1]), (("fab-t", "fab"), [1, 1])):
        chosen = short_suite("linf", 0.5, "custom", order)
        for attack, expected in zip(order, restarts, strict=True):
            front_end = chosen.start(AttackedModel(models["robust"]))
            chosen.run(front_end, attack, x, y)
            assert front_end.fab.n_restarts == expected


def test_versions_are_the_packages(models):
    for version in ("standard", "plus", "rand"):
        assert list(choose_attacks(version, "")) == pyautoattack.AutoAttack(tiny(), version=version).attacks_to_run
    assert choose_attacks("dev", "") == ("apgd-ce", "apgd-t")
    ours = short_suite("linf", 0.1, "dev").start(tiny())
    standard = pyautoattack.AutoAttack(tiny())
    for name in ("apgd", "apgd_targeted"):
        for setting in ("n_restarts", "eot_iter"):
            assert getattr(getattr(ours, name), setting) == getattr(getattr(standard, name), setting)
    assert short_suite("linf", 0.1, "rand").start(tiny()).apgd.eot_iter == 3


def messages(model, chosen):
    """The suite's log lines in the first attack, and in the second."""
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
    chosen = short_suite("linf", 0.02, "custom", ("apgd-ce", "square"))
    lines = list(messages(nn.Sequential(models["robust"], nn.Softmax(1)), chosen))
    assert [line[0] for line in lines] == ["running apgd-ce", "running square"]
    assert all("out of 6 successfully perturbed" in line[-1] for line in lines)
    (warning,) = (str(w.message) for w in recwarn)
    assert "the output is a probability distribution" in warning


def test_suites_own_checks_reach_the_user(models, recwarn):
    class Random(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + torch.randn(len(x), 10)

    for model, version, warning in (
        (Random(models["robust"]), "dev", "randomized defense"),
        (Random(models["robust"]), "rand", None),
        (nn.Sequential(models["robust"][:-1], nn.Linear(128, 3)), "dev", "with only 3 classes"),
    ):
        recwarn.clear()
        next(messages(model, short_suite("linf", 0.02, version)))
        # Others' warnings, such as of files that an earlier test left to the garbage collector, may come in between.
        ours = [str(w.message) for w in recwarn if not issubclass(w.category, ResourceWarning)]
        assert len(ours) == (warning is not None) and all(warning in message for message in ours)


def test_zero_gradients_are_warned_of(models):
    class Masked(nn.Sequential):
        def forward(self, x):
            return super().forward((x * 8).round() / 8)

    lines = list(messages(Masked(models["robust"]), short_suite("linf", 0.01, "custom", ("apgd-dlr",))))
    assert any("6 points with zero gradient" in line for line in lines[0])


def test_standard_is_the_packages_own_list():
    assert list(STANDARD) == pyautoattack.AutoAttack(tiny()).attacks_to_run


def test_plain_is_the_official_front_end(models, monkeypatch):
    """On the untouched network: its adversarial examples too, attack by attack."""
    x, y = digits(10)
    calls, run = [], pyautoattack.AutoAttack.run_standard_evaluation

    def counted(self, *args, **kwargs):
        calls.append(self.attacks_to_run)
        assert self.model is models["robust"] and not hasattr(self.apgd.attack_single_run, "__wrapped__")
        return run(self, *args, **kwargs)

    chosen = suite("linf", 0.1, ("apgd-ce", "fab-t", "fab"), "custom", plain=True)
    x_adv, prediction = official(models["robust"], x, y, "Linf", 0.1, 12, list(chosen.attacks))
    monkeypatch.setattr(pyautoattack.AutoAttack, "run_standard_evaluation", counted)
    ours = attacked(models["robust"], chosen, x, y)
    np.testing.assert_array_equal(ours["adversarial_prediction"], prediction)
    np.testing.assert_array_equal(ours["x_adv"], x_adv)
    assert 0 < (ours["broken_by"] == "").sum() < 10
    assert calls == [["apgd-ce"], ["fab-t"], ["fab"]]


@pytest.fixture
def authors_package(monkeypatch):
    """A stand-in with the signature of the authors' package, which is not on PyPI; pyautoattack cannot be imported."""

    class AutoAttack:
        def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=True, attacks_to_run=(), version="standard",
                     is_tf_model=False, device="cuda", log_path=None):  # fmt: skip
            assert version == "custom" or attacks_to_run == []
            self.inner = pyautoattack.AutoAttack(
                model, norm=norm, eps=eps, seed=seed, attacks=attacks_to_run or None, version=version, device=device
            )
            print("using", version)
            with open(log_path, "a") as file:
                file.write(f"using {version}\n")

        def __getattr__(self, name):  # the attacks and their settings have the same names in both packages
            return getattr(self.inner, name)

    package = types.ModuleType("autoattack")
    package.AutoAttack = AutoAttack
    monkeypatch.setitem(sys.modules, "autoattack", package)
    monkeypatch.setitem(sys.modules, "autoattack.checks", importlib.import_module("pyautoattack.checks"))
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    return package


def test_the_authors_package_gives_the_same_verdict(models, authors_package, tmp_path, capsys):
    x, y = digits(8)
    for version, attacks in (("custom", ("apgd-ce", "apgd-dlr")), ("dev", ("apgd-ce",))):
        settings = {"attacks": attacks, "version": version, "log_path": str(tmp_path / "log")}
        ours = attacked(AttackedModel(models["robust"]), suite("linf", 0.1, **settings), x, y)
        theirs = attacked(AttackedModel(models["robust"]), suite("linf", 0.1, package=find_package(), **settings), x, y)
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name])
    assert capsys.readouterr().out == ""  # standard output is for the result
    assert (tmp_path / "log").read_text() == "using custom\nusing standard\n"


def test_plain_needs_the_package_with_the_known_interface(authors_package):
    assert find_package() is authors_package
    with pytest.raises(UserError, match="pip install pyautoattack"):
        find_package(plain=True)


def test_unknown_attack_is_a_user_error():
    assert choose_attacks("custom", "square, apgd-ce,square") == ("square", "apgd-ce")
    with pytest.raises(UserError, match="unknown attack x; choose apgd-ce"):
        choose_attacks("custom", "x")


def test_suite_warns_when_square_finds_what_the_others_missed(caplog):
    accuracy = {"clean": 90.0, "apgd-ce": 50.0, "square": 49.0}
    suite().warn_about_square(accuracy)
    suite().warn_about_square({**accuracy, "square": 49.9})
    (record,) = caplog.records
    assert "decreased the robust accuracy of 1.00%." in record.getMessage()
