"""Whole runs of every method: exact resume with everything on, averages, patience."""

import copy
import json
import signal

import pytest
import torch

from attacks.pgd import frozen
from engine.config import TrainConfig
from engine.logger import Logger
from engine.resume import load_training_state
from engine.steps import STEPS
from engine.steps.standard import StandardStep
from engine.stopping import Stopped
from engine.trainer import Trainer
from losses import METHODS
from models import create_model
from models.checkpoint import find_weights
from utils.errors import UserError

RUN = {
    "dataset": "digits", "student": "wrn-10-1", "guide": "wrn-10-1", "limit_train": 48, "batch_size": 16, "epochs": 2,
    "num_steps": 2, "eval_size": 8, "val_size": 24, "save_freq": 1, "device": "cpu", "mark": "run", "step_size": 0.02,
}  # fmt: skip
EVERYTHING = {
    "awp_gamma": 0.005, "average_every": "step", "epsilon_ramp": "linear", "step_ratio": 0.5, "schedule": "onecycle",
    "label_smoothing": 0.1, "patience": 5,
}  # fmt: skip


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Makes trainers of one folder."""
    monkeypatch.setattr(Logger, "plot", lambda self, final=False: None)

    def make(folder="run", **changes):
        paths = {"log_dir": str(tmp_path / folder), "checkpoint_dir": str(tmp_path / folder)}
        return Trainer(TrainConfig.create(**{**RUN, **paths, **changes}))

    return make


def stop_after(monkeypatch, method, number):
    """The process gets a SIGTERM during its training step of that number."""
    kind = STEPS[METHODS[method].step]
    count, original = 0, kind.__call__

    def step(self, *args):
        nonlocal count
        count += 1
        if count == number:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(kind, "__call__", step)


def saved(folder, name):
    return torch.load(folder / "run" / name, weights_only=True)


def tensors(value, where=""):
    if isinstance(value, torch.Tensor):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{where}/{key}")


def assert_same_weights(a, b):
    a, b = dict(tensors(a)), dict(tensors(b))
    assert a.keys() == b.keys() and len(a) > 20
    for name in a:
        assert torch.equal(a[name], b[name]), name


def helper(folder):
    """The file of a network that a method may take for its frozen guide."""
    torch.manual_seed(3)
    torch.save(create_model("wrn-10-1", 10).state_dict(), folder / "helper.pt")
    return folder / "helper.pt"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_resumes_bit_for_bit_with_everything_on(tmp_path, monkeypatch, trainer, method):
    settings = {**EVERYTHING, "method": method, "average_every": "epoch" if method in ("lbgat", "gkl") else "step"}
    if METHODS[method].step in ("free", "yopo", "trades-yopo"):
        settings["awp_gamma"] = 0.0  # which these steps refuse
        settings["schedule"] = "cyclic"
    if method.startswith("fgsm"):
        settings |= {"stop_overfitting": True, "limit_train": 40}
    if method == "wa-trades":
        settings |= {"no_norm_decay": True, "nesterov": True, "average_ramp": True, "average_warmup": 0.25}
        settings["schedule"] = "onecycle-updates"
    if method in ("hat", "lbgat-frozen"):
        settings["guide_checkpoint"] = str(helper(tmp_path))
    trainer("whole", **settings).fit()
    with monkeypatch.context() as patch:
        stop_after(patch, method, 5)  # in the middle of the second epoch of three steps
        with pytest.raises(Stopped):
            trainer("parts", **settings).fit()
    assert (saved(tmp_path / "parts", "last.pt")["epoch"], saved(tmp_path / "parts", "last.pt")["steps_done"]) == (2, 2)
    trainer("parts", **settings).fit()
    for name in ("last.pt", "best.pt", "student-epoch002.pt", "average-epoch002.pt"):
        assert_same_weights(saved(tmp_path / "parts", name), saved(tmp_path / "whole", name))
    lines = [(tmp_path / f / "run" / "metrics.jsonl").read_text().splitlines() for f in ("whole", "parts")]
    for a, b in zip(*([json.loads(line) for line in each] for each in lines), strict=True):
        assert {k for k in a if a[k] != b[k]} <= {"seconds", "images_per_second", "crc32"} and a.keys() == b.keys()
    if method == "free":
        assert saved(tmp_path / "whole", "last.pt")["step"]["delta"].shape == (16, 3, 16, 16)
    if method.startswith("fgsm"):
        found = saved(tmp_path / "whole", "last.pt")["train_robust"]
        assert [100 * value for value in found] == [json.loads(line)["train_robust"] for line in lines[0]]
        assert len(found) == 2 and "PGD-5 on training images" in (tmp_path / "whole/run/train.log").read_text()
    if method in ("ikl", "gkl"):
        state = saved(tmp_path / "whole", "last.pt")["objective"]
        assert not state["prior_sums"].any() and not torch.equal(state["prior"], torch.full((10, 10), 0.1))


@pytest.mark.parametrize("every", ["epoch", "step"])
def test_average_of_a_run_is_evaluated_and_saved(tmp_path, monkeypatch, trainer, every):
    seen, original = [], StandardStep.__call__

    def step(self, *args):
        result = original(self, *args)
        seen.append(copy.deepcopy(self.student.model.state_dict()))
        return result

    monkeypatch.setattr(StandardStep, "__call__", step)
    run = trainer(method="trades", average_every=every, average_tau=0.5, epochs=3)
    run.fit()
    weights = seen if every == "step" else seen[2::3]
    expected = weights[0]["fc.weight"]
    for state in weights[1:]:
        expected = 0.5 * expected + 0.5 * state["fc.weight"]
    average = saved(tmp_path / "run", "average-epoch003.pt")
    torch.testing.assert_close(average["fc.weight"], expected)
    assert all(torch.equal(average[k], v) for k, v in run.average.model.state_dict().items())
    assert_same_weights(find_weights(saved(tmp_path / "run", "last.pt"), "last.pt").state, average)  # what is evaluated
    assert torch.equal(saved(tmp_path / "run", "student-epoch003.pt")["fc.weight"], seen[-1]["fc.weight"])
    best = saved(tmp_path / "run", "best.pt")
    assert best["best"]["chosen_by"] == "average_robust"
    chosen = saved(tmp_path / "run", f"average-epoch{best['best']['epoch']:03d}.pt")
    assert all(torch.equal(best["student"][name], chosen[name]) for name in chosen)
    line = json.loads((tmp_path / "run" / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    with frozen(run.average.model) as model, torch.no_grad():
        right = model(run.data.x_eval.float() / 255).argmax(1) == run.data.y_eval
    assert line["average_clean"] == pytest.approx(100 * right.float().mean().item())
    assert line["average_robust"] * 8 / 100 in range(9)


def test_patience_stops_where_validation_no_longer_improves(tmp_path, monkeypatch, trainer):
    values = iter([10.0, 30.0, 20.0, 25.0, 99.0])

    def evaluate(*args, **kwargs):
        return {"student_clean": 50.0, "student_robust": next(values), "robust_images": 8}

    monkeypatch.setattr("engine.trainer.evaluate", evaluate)
    settings = {"method": "at", "epochs": 9, "patience": 2, "limit_train": 16, "num_steps": 1}
    trainer(**settings).fit()
    log = (tmp_path / "run" / "run" / "train.log").read_text()
    assert "stopped early: no epoch since 2 was better (--patience 2)" in log
    assert saved(tmp_path / "run", "best.pt")["best"]["epoch"] == 2
    assert saved(tmp_path / "run", "last.pt")["epoch"] == 5
    trainer(**settings).fit()  # resumed, it stops at once
    assert saved(tmp_path / "run", "last.pt")["epoch"] == 5
    trainer(**{**settings, "patience": 3, "epochs": 5}).fit()
    assert saved(tmp_path / "run", "best.pt")["best"]["epoch"] == 5


@pytest.mark.parametrize(("changes", "free"), [({}, True), ({"schedule": "cosine"}, False), (EVERYTHING, False)])
def test_more_epochs_are_the_same_run_only_where_the_schedule_does_not_depend_on_them(tmp_path, trainer, changes, free):
    trainer(method="natural", epochs=1, limit_train=16, **changes).fit()
    if free:
        assert trainer(method="natural", epochs=2, limit_train=16, **changes).progress.epoch == 2
    else:
        with pytest.raises(UserError, match="--epochs 1 then, 2 now"):
            trainer(method="natural", epochs=2, limit_train=16, **changes)


def test_a_state_without_a_newer_setting_resumes_with_its_default(tmp_path, trainer):
    run = trainer(method="trades", epochs=1, limit_train=16, num_steps=1)
    run.fit()
    path = tmp_path / "run" / "run" / "last.pt"
    state = torch.load(path, weights_only=True)
    for name in ("awp_gamma", "schedule", "average_every", "beta"):
        del state["config"][name]
    torch.save(state, path)
    args = run.data.fingerprint, torch.device("cpu")
    assert load_training_state(path, run.config, *args)["epoch"] == 2
    changed = TrainConfig.create(**{**run.config.as_dict(), "awp_gamma": 0.005})
    with pytest.raises(UserError, match=r"--awp-gamma 0\.0 then, 0\.005 now"):
        load_training_state(path, changed, *args)
