"""Every script of sh/ that trains: its settings are the recipe's, and its first lines are what the files say."""

import re

import pytest

from benchmarks.cost import cost, step_gflop
from results.build_tables import DATASETS, network, read_published, read_recipes

RECIPES = read_recipes()
PUBLISHED = {row["recipe"]: row for row in read_published() if row["recipe"]}

ATTACK = {"norm": "linf", "epsilon": 0.031, "step_size": 0.007, "num_steps": 10}
COMMON = {"batch_size": 128, "momentum": 0.9, "weight_decay": 2e-4, "lr": 0.1, **ATTACK}
LBGAT = {"method": "lbgat", "guide": "resnet18-guide"}
PUBLISHED_LBGAT = {**LBGAT, "epochs": 100, "warmup_factor": 0.2, "decay_epochs": (76, 91)}
TRADES = {"method": "trades", "epochs": 76, "warmup_factor": 1, "decay_epochs": (75, 90, 100)}
SHORT = {"epochs": 30, "decay_epochs": (23, 28)}
MART = {"method": "mart", "warmup_factor": 1}
AWP = {
    "epochs": 200, "warmup_factor": 1, "decay_epochs": (100, 150), "weight_decay": 5e-4, "epsilon": 8 / 255,
    "step_size": 2 / 255, "awp_gamma": 0.005, "awp_start_epoch": 10,
}  # fmt: skip
RAMP = {
    "epochs": 200, "lr": 0.2, "schedule": "cosine", "weight_decay": 5e-4, "epsilon": 8 / 255, "epsilon_ramp": "linear",
    "step_ratio": 0.5, "num_steps": 5, "awp_gamma": 0.005, "awp_start_epoch": 10, "average_every": "epoch",
    "average_tau": 0.9,
}  # fmt: skip
IKL = {"method": "ikl", "alpha": 4, "beta": 20, "temperature": 4, **RAMP}
GKL = {**IKL, "method": "gkl", "temperature": 1}
ON_CIFAR100, ON_CIFAR10 = {"attack_beta": 1}, {"attack_beta": 0}

EXPECTED = {
    "lbgat0-cifar100-wrn34-10": {**PUBLISHED_LBGAT, "beta": 0},
    "lbgat6-cifar100-wrn34-10": {**PUBLISHED_LBGAT, "beta": 6},
    "lbgat6-cifar100-wrn34-20": {**PUBLISHED_LBGAT, "beta": 6},
    "lbgat0-cifar10-wrn34-10": {**PUBLISHED_LBGAT, "beta": 0},
    "lbgat0-cifar10-wrn34-20": {**PUBLISHED_LBGAT, "beta": 0},
    "ikl-cifar100-wrn34-10": {**IKL, **ON_CIFAR100},
    "ikl-cifar10-wrn34-10": {**IKL, **ON_CIFAR10},
    "gkl-cifar100-wrn34-10": {**GKL, **ON_CIFAR100, "gamma": 0.4},
    "gkl-cifar10-wrn34-10": {**GKL, **ON_CIFAR10, "gamma": 0.2},
}
for dataset in ("cifar10", "cifar100"):
    EXPECTED |= {
        f"trades6-{dataset}-wrn34-10": {**TRADES, "beta": 6},
        f"at-{dataset}-wrn34-10": {**TRADES, "method": "at"},
        f"mart6-{dataset}-wrn34-10": {**MART, "beta": 6, "epochs": 90, "decay_epochs": (75, 90), "weight_decay": 7e-4},
        f"mart5-{dataset}-resnet18": {
            **MART, "beta": 5, "epochs": 120, "decay_epochs": (75, 90, 100), "lr": 0.01, "weight_decay": 3.5e-3
        },
        f"at-awp-{dataset}-wrn34-10": {**AWP, "method": "at", "awp_gamma": 0.01, "awp_start_epoch": 1},
        f"trades6-awp-{dataset}-wrn34-10": {**AWP, "method": "trades", "beta": 6},
        f"lbgat-awp-reconstruction-{dataset}-wrn34-10": {**LBGAT, **AWP, "beta": 6},
        f"lbgat-awp-star-reconstruction-{dataset}-wrn34-10": {**LBGAT, **RAMP, "beta": 9},
        f"ikl-autoaugment-{dataset}-wrn34-10": {
            **EXPECTED[f"ikl-{dataset}-wrn34-10"], "augment": "autoaugment", "augment_view_weight": 0.3
        },
    }  # fmt: skip
for student in ("wrn34-10", "resnet18"):
    EXPECTED |= {
        f"lbgat0-short-cifar100-{student}": {**LBGAT, **SHORT, "beta": 0, "warmup_factor": 0.2},
        f"lbgat6-short-cifar100-{student}": {**LBGAT, **SHORT, "beta": 6, "warmup_factor": 0.2},
        f"trades6-short-cifar100-{student}": {**SHORT, "method": "trades", "beta": 6, "warmup_factor": 1},
    }


def header(name):
    lines = RECIPES[name].script.read_text().splitlines()
    return [line.removeprefix("# ") for line in lines[1:] if line.startswith("# ")]


def test_every_recipe_has_a_script_and_every_script_a_recipe():
    assert RECIPES.keys() == EXPECTED.keys()
    assert PUBLISHED.keys() <= RECIPES.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_settings(name):
    """The script spells out every setting of the recipe, and leaves all others at their defaults."""
    config, text = RECIPES[name].config, RECIPES[name].script.read_text()
    dataset, student = re.search(r"(cifar\d+)-(.*)", name).groups()
    expected = {**COMMON, **EXPECTED[name], "dataset": dataset, "student": student.replace("wrn", "wrn-"), "mark": name}
    if "step_ratio" in expected:
        del expected["step_size"]
    assert {key: getattr(config, key) for key in expected} == expected
    flags = {"--" + key.replace("_", "-") for key in expected}
    spelled = set(re.findall(r"(?<=\s)--[a-z-]+", text.split("train_lbgat.py", 1)[1]))
    assert flags <= spelled and spelled - flags <= {"--save-freq"}


@pytest.mark.parametrize("name", EXPECTED)
def test_first_lines(name):
    first, published, price, *_ = header(name)
    config = RECIPES[name].config
    assert f": {DATASETS[config.dataset]}, {network(config.student)}. Settings: " in first
    assert ("RECONSTRUCTION" in first) == ("reconstruction" in name)
    assert ("Settings: ours" in first) == ("short" in name)
    if name in PUBLISHED:
        row = PUBLISHED[name]
        figures = f"{row['clean']} clean, {row['autoattack']} under AutoAttack at epsilon {row['epsilon']} ("
        assert published.startswith(f"Published: {figures}")
        assert (row["dataset"], row["architecture"].lower()) == (config.dataset, network(config.student).lower())
    else:
        assert published.startswith("Published: no") and not re.search(r"\d\d\.\d\d", published)
    assert price == f"Cost: {cost(config, stated_gflop(name))}."


def stated_gflop(name):
    return int(re.search(r"Cost: (\d+) GFLOP", RECIPES[name].script.read_text())[1])


FORWARD, GUIDE, RESNET18 = 13.318, 3.527, 1.111  # GFLOP of one forward pass


@pytest.mark.parametrize(
    ("name", "gflop"),
    [
        ("lbgat6-cifar100-wrn34-10", 27 * FORWARD + 3 * GUIDE),
        ("lbgat0-cifar100-wrn34-10", 25 * FORWARD + 3 * GUIDE),
        ("trades6-cifar100-wrn34-10", 28 * FORWARD),
        ("at-cifar100-wrn34-10", 23 * FORWARD),
        ("mart6-cifar100-wrn34-10", 26 * FORWARD),
        ("mart5-cifar100-resnet18", 26 * RESNET18),
        ("at-awp-cifar100-wrn34-10", 26 * FORWARD),
        ("ikl-cifar100-wrn34-10", 23 * FORWARD),
        ("ikl-autoaugment-cifar100-wrn34-10", 2 * 23 * FORWARD),
    ],
)
def test_cost_in_forward_passes(name, gflop):
    """The student: 1 for the clean logits where the attack looks at them, 2 per attack step, 3 per trained pass, 1 per
    pass without gradient; weight perturbation runs the trained passes twice. The guide: 3."""
    assert stated_gflop(name) == pytest.approx(gflop, rel=0.01, abs=0.6)


@pytest.mark.parametrize("name", ["lbgat6-short-cifar100-resnet18", "mart5-cifar10-resnet18"])
def test_cost_is_counted(name):
    assert stated_gflop(name) == round(step_gflop(RECIPES[name].config))
