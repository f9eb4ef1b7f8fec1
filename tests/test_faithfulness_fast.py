"""The numbers of the published programs of fast and related methods, to float64 rounding.

LBGAT_GOLDEN_FAST names another file of the same form: every size and setting is read from it.
"""

import importlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import engine.steps.standard
from attacks.pgd import GAUSSIAN_START, AttackSpec, cross_entropy_per_image, frozen, perturb
from engine.averaging import WeightAverage
from engine.config import TrainConfig
from engine.optimizer import create_optimizer
from engine.overfitting import training_accuracy
from engine.schedule import update_rates
from engine.steps import create_step
from losses import create_objective
from models.batchnorm_sets import SECOND, add_second_batchnorms
from tests.helpers import ROOT, Golden, tiny_net

TOLERANCE = 1e-9
GOLDEN = Golden(Path(os.environ.get("LBGAT_GOLDEN_FAST", ROOT / "tests" / "golden_fast.npz")))
N = GOLDEN.steps
SPEC_ONLY = {
    "las_at": "a second network trained by REINFORCE; its attack alone is checked, as a case of per-image settings",
    "gowal_jax": "an Adam attack and bias-corrected BatchNorm; the PyTorch form of the method is wa_trades",
}


def renamed(state):
    """The program's ``bn1_auto`` is ``bn1.auto`` here."""
    return {re.sub(r"(bn\d)_auto\.", rf"\1.{SECOND}.", name): value for name, value in state.items()}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


class Case:
    """One case of the file: its arrays and settings, and a step that trains its network.

    Args:
        values: of the method's own parameters; settings: further ones of the run, as in TrainConfig.
    """

    def __init__(self, name, method, values=None, net=None, helper=None, **settings):
        self.name = name
        number = "num_steps" if "num_steps" in self else "perturb_steps" if "perturb_steps" in self else "max_steps"
        settings = {
            "epsilon": str(self.hyper("epsilon")),
            "step_size": str(self.hyper("step_size", self.hyper("epsilon"))),
            "num_steps": int(self.hyper(number, 1)),
            "lr": self.hyper("lr", 0.1),
            "weight_decay": self.hyper("weight_decay"),
            "nesterov": bool(self.hyper("nesterov", 0)),
            "label_smoothing": self.hyper("label_smoothing", 0.0),
            "schedule": "multistep",
            "warmup_factor": 1.0,
            "decay_epochs": (),
            "batch_size": int(GOLDEN.get("meta", "batch")),
            **settings,
        }
        self.config = TrainConfig.create(method=method, **settings, **(values or {}))
        self.objective = create_objective(
            method, GOLDEN.num_classes, self.config.label_smoothing, **self.config.parameters
        ).double()
        self.net = net or tiny_net(GOLDEN.state(name, "student0"))
        self.optimizer = create_optimizer(self.config, [self.net])
        config = self.config
        attack = AttackSpec(config.epsilon, config.step_size, config.num_steps, start=self.objective.start)
        self.step = create_step(self.net, helper, self.objective, self.optimizer, attack, awp_gamma=config.awp_gamma)
        self.objective.begin_epoch(1)

    def __contains__(self, name):
        return f"{self.name}/hyper/{name}" in GOLDEN.arrays

    def hyper(self, name, default=None):
        return GOLDEN.get(self.name, "hyper", name).item() if name in self else default

    def get(self, *path):
        return GOLDEN.get(self.name, *path)

    def has(self, what):
        return f"{self.name}/{what}" in GOLDEN.arrays

    def update(self, i, start=None, views=None, y=None, size=None):
        """Train on the batch of update i, from the given starts; compare x' and the loss."""
        step, x = self.step, self.get("x")[i][:size]
        if start is not None:
            starts = start if isinstance(start, list) else [start]
            step.draw_starts = lambda views, generator: starts
        step.set_rates(update_rates(self.config, 1, i, N, step.updates_per_batch))
        terms = step(views or [x], self.get("y")[i][:size])
        if self.has("x_adv"):
            expected = self.get("x_adv")[i]
            for x_adv, each in zip(step.x_adv, expected if len(step.x_adv) > 1 else [expected], strict=True):
                close(x_adv, each)
        if self.has("delta") and step.x_adv:
            close(step.x_adv[0] - x, self.get("delta")[i])
        loss = self.get("loss")[i]
        close(sum(terms.values()), loss.mean() if loss.dim() else loss)
        for which in ("lr", "momentum"):
            if self.has(which):
                rate = torch.tensor(self.optimizer.param_groups[0][which], dtype=torch.float64)
                close(rate, self.get(which)[i].reshape(-1)[-1])

    def compare(self, which=f"student{N}", state=None):
        state, expected = state or self.net.state_dict(), renamed(GOLDEN.state(self.name, which))
        assert set(state) == set(expected)
        for name, tensor in state.items():
            close(tensor, expected[name])


HANDLERS: dict[str, Callable[[str, pytest.MonkeyPatch], None]] = {}


def handles(pattern):
    return lambda test: HANDLERS.setdefault(pattern, test)


@pytest.mark.parametrize("name", [name for name in GOLDEN.cases if name not in SPEC_ONLY])
def test_case(name, monkeypatch):
    (handler,) = [handler for pattern, handler in HANDLERS.items() if re.fullmatch(pattern, name)]
    handler(name, monkeypatch)


def test_every_method_of_the_file_is_known():
    cases = [name for name in GOLDEN.cases if name not in SPEC_ONLY]
    assert all(sum(bool(re.fullmatch(pattern, name)) for pattern in HANDLERS) == 1 for name in cases)


@handles(r"free_(original_)?m\d+")
def free(name, monkeypatch):
    original = "original" in name
    values = {"replays": Case.hyper(Named(name), "replays"), "clip_image": float(original)}
    schedule = {} if original else {"schedule": "cyclic", "epochs": 1, "lr": Case.hyper(Named(name), "lr_max")}
    case = Case(name, "free", values, **schedule)
    seen, apply = [], case.optimizer.step

    def recorded():
        seen.append([case.optimizer.param_groups[0][key] for key in ("lr", "momentum")])
        apply()

    case.optimizer.step = recorded
    deltas, move = [], case.step._moved
    case.step._moved = lambda *args: deltas.append(move(*args)) or deltas[-1]
    for i, size in enumerate(case.get("sizes").tolist()):
        before = case.step.delta
        case.update(i, size=size)
        close(torch.stack(case.step.losses), case.get("loss")[i])
        for delta, expected in zip(deltas, case.get("delta")[i], strict=True):
            close(delta, expected[:size])
            if before is not None and len(before) > size:
                close(before[size:], expected[size : len(before)])
        for which in ("lr", "momentum"):
            if case.has(which):
                rates = torch.tensor(seen, dtype=torch.float64)
                close(rates[:, int(which == "momentum")], case.get(which)[i])
        deltas.clear(), seen.clear()
    case.compare()


class Named(Case):
    """The settings of a case alone."""

    def __init__(self, name):
        self.name = name


@handles(r"fgsm_rs")
def fgsm_rs(name, monkeypatch):
    case = Case(name, "fgsm-rs", schedule="cyclic", epochs=1, lr=Case.hyper(Named(name), "lr_max"))
    losses = []
    case.objective.inner = lambda adv, nat, y: losses.append(cross_entropy_per_image(adv, nat, y)) or losses[-1]
    for i in range(N):
        case.update(i, (case.get("x")[i] + case.get("noise")[i]).clamp(0, 1))
        close(losses[-1].mean().detach(), case.get("loss_start")[i])
    case.compare()
    x, noise, y = case.get("x")[0], case.get("check_noise"), case.get("check_y")
    found, apply = [], case.step.student.train_logits
    case.step.student.train_logits = lambda images: found.append(images.detach()) or apply(images)
    start, size = (x + noise).clamp(0, 1), case.hyper("check_step_size")
    accuracy = training_accuracy(case.step.student, x, y, case.step.attack, start=start, step_size=size)
    close(found[-1] - x, case.get("check_delta"))
    close(torch.tensor(accuracy, dtype=torch.float64), case.get("check_accuracy"))
    case.compare("student_checked")


@handles(r"fat_(trades_|mart_)?tau\d+")
def fat(name, monkeypatch):
    method = "-".join(name.split("_")[:-1])
    values = {"tau": Case.hyper(Named(name), "tau")}
    if method != "fat":
        values["beta"] = Case.hyper(Named(name), "beta")
    case = Case(name, method, values)
    assert case.objective.step_noise == case.hyper("omega")
    for i in range(N):
        noises = iter(case.get("step_noise")[i]) if case.objective.step_noise else iter(())
        monkeypatch.setattr(
            importlib.import_module("attacks.pgd"), "normal", lambda like, generator, noises=noises: next(noises)
        )
        counted, moves = [], case.objective.__class__.moves

        def counting(adv_logits, y, wrong, counted=counted, moves=moves):
            counted.append(moves(case.objective, adv_logits, y, wrong))
            return counted[-1]

        case.objective.moves = counting
        scale = GAUSSIAN_START if method != "fat" else 1.0
        case.update(i, (case.get("x")[i] + scale * case.get("noise")[i]).clamp(0, 1))
        assert sum(moving.sum().item() for moving in counted) == case.get("count")[i] == case.get("steps")[i].sum()
    case.compare()


@handles(r"yopo_(wide_)?\d+_\d+")
def yopo(name, monkeypatch):
    hyper = Named(name).hyper
    values = {"full_passes": hyper("K"), "wide": float("wide" in name)}
    case = Case(name, "yopo", values, num_steps=int(hyper("n")))
    for i in range(N):
        case.step.draw_eta = lambda x, generator, i=i: case.get("noise")[i]
        case.update(i)
        close(torch.stack(case.step.etas), case.get("eta")[i])
        close(torch.stack(case.step.losses), case.get("loss")[i])
    case.compare()


@handles(r"yopo_trades_\d+_\d+")
def yopo_trades(name, monkeypatch):
    hyper = Named(name).hyper
    case = Case(name, "trades-yopo", {"full_passes": hyper("K")}, num_steps=int(hyper("n")))
    for i in range(N):
        case.update(i, case.get("x")[i] + GAUSSIAN_START * case.get("noise")[i])
        close(torch.stack(case.step.etas), case.get("eta")[i])
    case.compare()


@handles(r"rice_pgd")
def rice(name, monkeypatch):
    hyper = Named(name).hyper
    epochs = int(hyper("epochs"))
    schedule = {"schedule": "piecewise", "epochs": epochs, "lr": hyper("lr_max")}
    case = Case(name, "rice", **schedule | {"decay_epochs": (epochs / 2 + 1, 3 * epochs / 4 + 1)})
    outputs = []
    case.net.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    for i in range(N):
        case.update(i, (case.get("x")[i] + case.get("noise")[i]).clamp(0, 1))
        clean = torch.nn.functional.cross_entropy(outputs[-1], case.get("y")[i])
        close(clean, case.get("loss_clean")[i])
    assert len(outputs) == N * (case.config.num_steps + 3)
    case.compare()


@handles(r"ates")
def ates(name, monkeypatch):
    case = Case(name, "ates")
    passes, apply = [], case.step.student.attack_logits
    case.step.student.attack_logits = lambda images: passes.append(len(images)) or apply(images)
    for i in range(N):
        case.objective.bound = case.get("gap")[i].item()
        passes.clear()
        case.update(i, (case.get("x")[i] + case.get("noise")[i]).clamp(0, 1))
        assert len(passes) == case.get("evals")[i]
    case.compare()


@handles(r"backward_smoothing")
def backward_smoothing(name, monkeypatch):
    hyper = Named(name).hyper
    case = Case(name, "backward-smoothing", {"beta": hyper("beta"), "gamma": hyper("gamma")})
    for i in range(N):
        monkeypatch.setattr(engine.steps.standard, "uniform", lambda like, generator, i=i: case.get("noise")[i])
        case.update(i)
    case.compare()


@handles(r"wa_trades")
def wa_trades(name, monkeypatch):
    case = Case(name, "wa-trades", {"beta": Named(name).hyper("beta")}, no_norm_decay=True)
    average = WeightAverage(case.step.student, case.hyper("tau"), case.hyper("warmup_steps"), ramp=True)
    for i in range(N):
        case.update(i, (case.get("x")[i] + case.get("noise")[i]).clamp(0, 1))
        average.update(case.net.state_dict())
    case.compare()
    case.compare(f"average{N}", average.model.state_dict())


@handles(r"score")
def score(name, monkeypatch):
    hyper = Named(name).hyper
    values = {"beta": hyper("beta"), "clip_value": hyper("clip_value"), "bn_momentum": 0.0}  # BatchNorm's own
    case = Case(name, "score", values)
    for i in range(N):
        case.update(i, (case.get("x")[i] + case.get("noise")[i]).clamp(0, 1))
    case.compare()


@handles(r"hat")
def hat(name, monkeypatch):
    hyper = Named(name).hyper
    helper = tiny_net(GOLDEN.state(name, "helper0")).eval().requires_grad_(False)
    case = Case(name, "hat", {key: hyper(key) for key in ("beta", "gamma", "h")}, helper=helper)
    for i in range(N):
        case.update(i, case.get("x")[i] + GAUSSIAN_START * case.get("noise")[i])
    case.compare()


@handles(r"dajat")
def dajat(name, monkeypatch):
    hyper = Named(name).hyper
    state = GOLDEN.state(name, "student0")
    net = tiny_net({key: value for key, value in state.items() if "_auto" not in key})
    add_second_batchnorms(net)
    net.load_state_dict(renamed(state))
    values = {"beta": hyper("beta"), "js": hyper("js_weight")}
    epsilon = hyper("epsilon") * hyper("epoch") / hyper("epochs")
    attack = {"epsilon": str(epsilon), "step_size": str(epsilon / 2), "num_steps": 5}
    case = Case(name, "dajat", values, net, **attack, awp_gamma=hyper("awp_gamma"))
    average = WeightAverage(case.step.student, hyper("tau"))
    start = renamed(GOLDEN.state(name, "average0"))
    average.model.load_state_dict(start)
    average.updates = 1  # an epoch after its start
    # The program averages BatchNorm's counters too, as floats; here the average has the student's.
    counters = {key: value.double() for key, value in start.items() if key.endswith("num_batches_tracked")}
    for i in range(N):
        views = [case.get(key)[i] for key in ("x", "x_auto1", "x_auto2")]
        starts = [x + GAUSSIAN_START * z for x, z in zip(views, case.get("noise")[i], strict=True)]
        case.update(i, starts, views)
        average.update(case.net.state_dict())
        for key, value in counters.items():
            value.lerp_(case.net.state_dict()[key].double(), 1 - hyper("tau"))
    case.compare()
    case.compare(f"average{N}", average.model.state_dict() | counters)


@pytest.mark.skipif("las_at" not in GOLDEN.cases, reason="not in this file")
def test_the_attack_of_las_at_has_settings_of_its_own_for_each_image():
    case = Named("las_at")
    net, x, y = tiny_net(GOLDEN.state("las_at", "student0")), case.get("x")[0], case.get("y")[0]
    epsilon, number, size = case.get("policy")[0].T
    spec = AttackSpec(epsilon.double() / 255, size.double() / 255, number)
    with frozen(net):
        x_adv = perturb(
            net, x, y, cross_entropy_per_image, spec, start=(x + case.get("noise")[0]).clamp(0, 1), uses_clean=False
        )
    close(x_adv, case.get("x_adv")[0])
