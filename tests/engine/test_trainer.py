"""Training runs: what they write, that interruptions change nothing, and how they fail."""

import errno
import itertools
import json
import logging
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

import engine.data
import engine.stopping
import engine.train_state
import engine.trainer
from attacks.pgd import AttackSpec, starting_point
from datasets import Dataset, load_dataset
from datasets.loader import to_device, to_float
from engine.logger import Logger
from engine.steps import create_step
from engine.steps.standard import StandardStep
from engine.stopping import Stopped
from engine.trainer import Trainer
from losses import METHODS, create_objective
from models import create_model
from tests.helpers import ROOT, command_line, run_step
from tests.helpers import tiny_run as tiny
from utils.errors import UserError

PROGRAM = ROOT / "train_lbgat.py"
DRAW = Logger.plot


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(Logger, "plot", lambda self, final=False: None)


def run(config):
    trainer = Trainer(config)
    trainer.fit()
    return trainer


def checkpoint(folder, name="last.pt"):
    return torch.load(folder / "checkpoints" / "run" / name, weights_only=True)


def metrics_of(folder):
    return [json.loads(line) for line in (folder / "Logs" / "run" / "metrics.jsonl").read_text().splitlines()]


def log_of(folder):
    return (folder / "Logs" / "run" / "train.log").read_text()


def program(capfd, *argv):
    """The real program in this process: exit status, standard output, standard error."""
    before, sys.argv = sys.argv, [str(PROGRAM), *argv]
    capfd.readouterr()
    try:
        runpy.run_path(str(PROGRAM), run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.argv = before
    return status, *capfd.readouterr()


def assert_one_sentence(status, err, *parts):
    assert status == 1
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    for part in parts:
        assert part in lines[0]


# -- interrupted and resumed is one go -------------------------------------------------------------------------------

TIMES = {"seconds", "images_per_second", "crc32"}  # the checksum is of the times too


def outcome(folder):
    """All that a run leaves behind, but for times and paths."""
    files = sorted(path.name for path in (folder / "checkpoints" / "run").glob("*.pt"))
    log = re.sub(r"^\S+ \S+ |\d+ images/s.*|\S*checkpoints\S*", "", log_of(folder), flags=re.MULTILINE)
    return {
        "files": files,
        "checkpoints": {name: without_times(checkpoint(folder, name)) for name in files},
        "metrics": without_times(metrics_of(folder)),
        # An epoch that a kill made train again is in the log twice.
        "epoch lines": list(dict.fromkeys(line for line in log.splitlines() if re.match(r"epoch \d|finished", line))),
    }


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if key not in TIMES | {"config"}}
    return [without_times(v) for v in value] if isinstance(value, (list, tuple)) else value


def assert_identical(a, b, where="outcome"):
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_identical(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), f"{where}: {a} {b}"
        for i, (u, v) in enumerate(zip(a, b, strict=True)):
            assert_identical(u, v, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def one_go(tmp_path_factory):
    """The outcome of the tiny run without interruption, and its folder."""
    folder = tmp_path_factory.mktemp("one_go")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Logger, "plot", lambda self, final=False: None)
        run(tiny(folder))
    return folder


def at_step(monkeypatch, number, action):
    """Do something right before a run's given training step, counted from 1."""
    count, original = 0, StandardStep.__call__

    def step(self, *args):
        nonlocal count
        count += 1
        if count == number:
            action()
        return original(self, *args)

    monkeypatch.setattr(StandardStep, "__call__", step)


def send(number):
    return lambda: os.kill(os.getpid(), number)


def crash():
    raise ZeroDivisionError


def test_one_go_leaves_everything(one_go):
    files = outcome(one_go)["files"]
    assert files == ["best.pt", "last.pt", "student-epoch002.pt", "student-epoch003.pt"]
    state = checkpoint(one_go)
    assert (state["epoch"], state["steps_done"]) == (4, 0)
    assert [line["epoch"] for line in metrics_of(one_go)] == [1, 2, 3]
    assert sorted(path.name for path in (one_go / "Logs" / "run").iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "train.log",
        "training.lock",
    ]


# An epoch has three steps; after the sixth comes an evaluation.
@pytest.mark.parametrize(("number", "status", "step"), [(signal.SIGINT, "SIGINT", 5), (signal.SIGTERM, "SIGTERM", 6)])
def test_stopped_by_a_signal(tmp_path, monkeypatch, one_go, number, status, step):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, step, send(number))
        with pytest.raises(Stopped, match=status):
            run(tiny(tmp_path))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    state = checkpoint(tmp_path)
    assert (state["epoch"], state["steps_done"]) == ((step - 1) // 3 + 1, (step - 1) % 3 + 1)
    assert (
        f"stopped by {status} at epoch {state['epoch']}, step {state['steps_done']}/3; run the same command again"
        in log_of(tmp_path)
    )
    run(tiny(tmp_path))
    assert_identical(outcome(tmp_path), outcome(one_go))
    assert f"resuming at epoch {state['epoch']}, step {state['steps_done']}/3, from " in log_of(tmp_path)


def test_stopped_again_and_again(tmp_path, monkeypatch, one_go):
    for step in (2, 1, 3, 1):
        with monkeypatch.context() as patch:
            at_step(patch, step, send(signal.SIGTERM))
            with pytest.raises(Stopped):
                run(tiny(tmp_path))
    run(tiny(tmp_path))
    assert_identical(outcome(tmp_path), outcome(one_go))


def test_stopped_by_max_minutes(tmp_path, one_go):
    with pytest.raises(Stopped, match="--max-minutes 1e-06"):
        run(tiny(tmp_path, max_minutes=1e-6))
    assert checkpoint(tmp_path)["steps_done"] == 1
    run(tiny(tmp_path))
    assert_identical(outcome(tmp_path), outcome(one_go))


@pytest.mark.parametrize("epoch", [1, 3])
def test_stopped_during_evaluation(tmp_path, monkeypatch, one_go, epoch):
    evaluate, calls = engine.trainer.evaluate, []

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(engine.trainer, "evaluate", interrupted)
        with pytest.raises(Stopped):
            run(tiny(tmp_path))
    state = checkpoint(tmp_path)
    assert (state["epoch"], state["steps_done"]) == (epoch, 3)
    assert len(metrics_of(tmp_path)) == epoch - 1
    run(tiny(tmp_path))
    assert_identical(outcome(tmp_path), outcome(one_go))


def test_more_epochs_later(tmp_path, one_go):
    run(tiny(tmp_path, epochs=2))
    run(tiny(tmp_path, epochs=3))
    run(tiny(tmp_path, epochs=3))  # nothing to do
    result, expected = outcome(tmp_path), outcome(one_go)
    result["epoch lines"] = expected["epoch lines"] = []  # these name the number of epochs, and the run finishes twice
    assert_identical(result, expected)


def test_averages_that_depend_on_the_number_of_epochs_are_not_resumed_with_another(tmp_path):
    flags = {"average_every": "epoch", "average_warmup": 0.5}
    Trainer(tiny(tmp_path, epochs=1, **flags)).fit()
    with pytest.raises(UserError, match="--epochs 1 then, 2 now"):
        Trainer(tiny(tmp_path, epochs=2, **flags))


@pytest.mark.parametrize("step", [4, 6])
@pytest.mark.parametrize("save_always", [False, True])
def test_killed_in_the_middle(tmp_path, monkeypatch, one_go, step, save_always):
    """A kill -9 falls back to the last saved state, at an epoch's end or within it."""
    with monkeypatch.context() as patch:
        if save_always:
            patch.setattr(engine.stopping, "SECONDS_BETWEEN_SAVES", -1.0)
        at_step(patch, step, crash)
        with pytest.raises(ZeroDivisionError):
            run(tiny(tmp_path))
    state = checkpoint(tmp_path)
    assert (state["epoch"], state["steps_done"]) == (2, (step - 4) if save_always else 0)
    run(tiny(tmp_path))
    assert_identical(outcome(tmp_path), outcome(one_go))


@pytest.mark.parametrize("write", range(1, 8))
def test_killed_before_any_write(tmp_path, monkeypatch, one_go, write):
    """Whatever file an epoch's end has got to: best.pt, the metrics and last.pt never contradict each other."""
    count, original = 0, engine.train_state.save_atomically

    def killed(*args):
        nonlocal count
        count += 1
        if count == write:
            crash()
        original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(engine.train_state, "save_atomically", killed)
        with pytest.raises(ZeroDivisionError):
            run(tiny(tmp_path))
    run(tiny(tmp_path))
    assert_identical(outcome(tmp_path), outcome(one_go))


@pytest.mark.parametrize(
    ("method", "parameters", "norm"),
    [("lbgat", {"beta": 0.0}, "linf"), ("trades", {}, "l2"), ("at", {}, "linf"), ("natural", {}, "linf")],
)
def test_every_method_resumes(tmp_path, monkeypatch, method, parameters, norm):
    changes = {"method": method, **parameters, "norm": norm, "epochs": 2, "val_size": 40, "limit_train": 32}
    run(tiny(tmp_path / "a", **changes))
    with monkeypatch.context() as patch:
        at_step(patch, 3, send(signal.SIGTERM))
        with pytest.raises(Stopped):
            run(tiny(tmp_path / "b", **changes))
    run(tiny(tmp_path / "b", **changes))
    assert_identical(outcome(tmp_path / "b"), outcome(tmp_path / "a"))
    assert (checkpoint(tmp_path / "a")["guide"] is None) == (method != "lbgat")


def test_resume_from_a_path_into_another_folder(tmp_path, one_go):
    run(tiny(tmp_path / "a", epochs=2))
    run(tiny(tmp_path / "b", resume=str(tmp_path / "a" / "checkpoints" / "run" / "last.pt")))
    for name in ("student", "guide", "optimizer"):
        assert_identical(checkpoint(tmp_path / "b")[name], checkpoint(one_go)[name])
    # The best of this folder: there is a file for what last.pt calls the best.
    assert checkpoint(tmp_path / "b")["best"]["epoch"] == checkpoint(tmp_path / "b", "best.pt")["best"]["epoch"]


def test_resume_none_starts_afresh(tmp_path, one_go):
    run(tiny(tmp_path, seed=3, epochs=1))
    (tmp_path / "checkpoints" / "run" / "student-epoch001.pt").unlink()  # of the last epoch then, not of this run
    run(tiny(tmp_path, resume="none"))
    assert_identical(outcome(tmp_path), outcome(one_go))


def test_the_seed_decides_and_nothing_else(tmp_path, one_go):
    torch.manual_seed(77)
    np.random.seed(77)
    run(tiny(tmp_path / "same"))
    assert_identical(outcome(tmp_path / "same"), outcome(one_go))
    run(tiny(tmp_path / "other", seed=3, epochs=1))
    assert not torch.equal(
        checkpoint(tmp_path / "other")["student"]["conv1.weight"], checkpoint(one_go)["student"]["conv1.weight"]
    )


def test_sigterm_to_the_real_program(tmp_path):
    """In the middle of an epoch of 20 steps, and the rest in another process (this one)."""
    changes = {"limit_train": 320, "epochs": 1}
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), *command_line(tiny(tmp_path / "b", **changes))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    log, deadline = tmp_path / "b" / "Logs" / "run" / "train.log", time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "Traceback" not in err and re.search(r"stopped by SIGTERM at epoch 1, step \d+/20", out)
    assert 0 < checkpoint(tmp_path / "b")["steps_done"] < 20
    run(tiny(tmp_path / "b", **changes))
    run(tiny(tmp_path / "a", **changes))
    assert_identical(outcome(tmp_path / "b"), outcome(tmp_path / "a"))


def test_max_minutes_is_exit_status_75(tmp_path, capfd):
    status, out, err = program(capfd, *command_line(tiny(tmp_path, max_minutes=1e-6)))
    assert (status, err) == (75, "") and "stopped by --max-minutes 1e-06 at epoch 1" in out


def test_training_outside_of_the_main_thread(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, tiny(tmp_path, epochs=1)).result()
    assert [line["epoch"] for line in metrics_of(tmp_path)] == [1]


def test_ctrl_c_is_exit_status_130(tmp_path, monkeypatch, capfd):
    at_step(monkeypatch, 2, send(signal.SIGINT))
    status, out, err = program(capfd, *command_line(tiny(tmp_path)))
    assert (status, err) == (130, "")
    assert "stopped by SIGINT at epoch 1, step 2/3; run the same command again to continue" in out


def test_second_ctrl_c_does_not_wait(tmp_path, monkeypatch, capfd):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at_step(monkeypatch, 2, twice)
    status, _, err = program(capfd, *command_line(tiny(tmp_path)))
    assert status == 130 and "Traceback" not in err


# -- what a run writes -----------------------------------------------------------------------------------------------


def slow_accuracy(state, images, labels):
    model = create_model("wrn-10-1", 10)
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        right = [
            model(x[None].float() / 255).argmax().item() == y for x, y in zip(images, labels.tolist(), strict=True)
        ]
    return 100 * sum(right) / len(right)


def test_metrics(tmp_path, monkeypatch):
    terms, original = [], StandardStep.__call__

    def step(self, views, y, generator):
        result = original(self, views, y, generator)
        terms.append((len(y), {name: term.item() for name, term in result.items()}))
        return result

    monkeypatch.setattr(StandardStep, "__call__", step)
    trainer = run(tiny(tmp_path, val_size=0, epochs=2, save_freq=1))
    lines = metrics_of(tmp_path)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert set(lines[0]) == {
        "crc32",
        "epoch", "lr", "loss", "loss_mse", "loss_guide_ce", "loss_kl", "split", "student_clean", "student_robust",
        "robust_images", "guide_clean", "images_per_second", "seconds",
    }  # fmt: skip
    for number, line in enumerate(lines):
        assert line["lr"] == pytest.approx([0.02, 0.1][number])
        assert (line["split"], line["robust_images"]) == ("test", 12)
        of_epoch = terms[3 * number : 3 * number + 3]
        assert [n for n, _ in of_epoch] == [16, 16, 8]  # the last batch counts half
        expected = {name: sum(n * values[name] for n, values in of_epoch) / 40 for name in ("mse", "guide_ce", "kl")}
        assert {name: line[f"loss_{name}"] for name in expected} == pytest.approx(expected, rel=1e-6)
        assert line["loss"] == pytest.approx(sum(expected.values()), rel=1e-6)
        assert line["seconds"] > 0 and line["images_per_second"] == pytest.approx(40 / line["seconds"])
        state = checkpoint(tmp_path, f"student-epoch{number + 1:03d}.pt")
        assert line["student_clean"] == pytest.approx(slow_accuracy(state, trainer.data.x_eval, trainer.data.y_eval))
        assert 0 <= line["student_robust"] <= 100 and (line["student_robust"] * 12 / 100) == pytest.approx(
            round(line["student_robust"] * 12 / 100)
        )
    guide = checkpoint(tmp_path)["guide"]
    assert lines[-1]["guide_clean"] == pytest.approx(slow_accuracy(guide, trainer.data.x_eval, trainer.data.y_eval))


def test_robust_accuracy_is_pgd_20(tmp_path, monkeypatch):
    """On the first eval_size images, epsilon of the run, step 0.003."""
    trainer = Trainer(tiny(tmp_path, val_size=0, epochs=1))
    trainer.fit()
    x, y = to_float(trainer.data.x_eval[:12]), trainer.data.y_eval[:12]
    start = starting_point(x, AttackSpec(0.031, 0.003, 20, start="uniform"), torch.Generator().manual_seed(0))
    model, x_adv = trainer.student.eval(), start
    for _ in range(20):
        x_adv = x_adv.detach().requires_grad_()
        torch.nn.functional.cross_entropy(model(x_adv), y).backward()
        x_adv = x + (x_adv + 0.003 * x_adv.grad.sign() - x).clamp(-0.031, 0.031)
        x_adv = x_adv.clamp(0, 1)
    expected = 100 * (model(x_adv).argmax(1) == y).float().mean().item()
    assert metrics_of(tmp_path)[0]["student_robust"] == pytest.approx(expected)


def test_config_json_holds_every_setting(one_go):
    written = json.loads((one_go / "Logs" / "run" / "config.json").read_text())
    for name, value in tiny(one_go).as_dict().items():
        assert written[name] == (list(value) if isinstance(value, tuple) else value)
    assert "torch" in written["hardware"] and isinstance(written["command"], list)


def test_curves(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(Logger, "plot", DRAW)
    run(tiny(tmp_path, epochs=1))
    content = (tmp_path / "Logs" / "run" / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_without_matplotlib_the_log_says_why_there_is_no_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(Logger, "plot", DRAW)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run(tiny(tmp_path, epochs=1))
    assert "curves.png is not drawn: matplotlib is not installed" in log_of(tmp_path)


def test_the_optimizer_follows_the_schedule(tmp_path, monkeypatch):
    rates, original = [], StandardStep.__call__

    def step(self, *args):
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        return original(self, *args)

    monkeypatch.setattr(StandardStep, "__call__", step)
    trainer = run(tiny(tmp_path))
    assert np.allclose(rates, [[0.02]] * 3 + [[0.1]] * 3 + [[0.01]] * 3, rtol=1e-12)
    # One optimizer over student and guide, momentum and weight decay on all of them
    (group,) = trainer.optimizer.param_groups
    assert len(group["params"]) == len([*trainer.student.parameters(), *trainer.guide.parameters()])
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 2e-4, False)


def test_student_file_loads_in_a_plain_script(one_go):
    script = (
        "import sys, torch\n"
        "state = torch.load(sys.argv[1], weights_only=True)\n"
        "assert all(type(v) is torch.Tensor and v.device.type == 'cpu' and v.is_contiguous() for v in state.values())\n"
        "print(type(state).__name__, len(state), *state['fc.weight'].shape, *list(state)[:2])\n"
    )
    path = one_go / "checkpoints" / "run" / "student-epoch003.pt"
    done = subprocess.run([sys.executable, "-I", "-c", script, str(path)], capture_output=True, text=True, cwd=one_go)
    expected = list(create_model("wrn-10-1", 10).state_dict())
    assert done.stdout.split() == ["dict", str(len(expected)), "10", "64", *expected[:2]], done.stderr
    assert_identical(checkpoint(one_go, "student-epoch003.pt"), checkpoint(one_go)["student"])


# -- which checkpoint is best ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "criterion", "values", "best"),
    [
        ("lbgat", "student_robust", [10.0, 30.0, 20.0], 2),
        ("lbgat", "student_robust", [0.0, 30.0, 30.0], 2),  # the first of equals
        ("natural", "student_clean", [10.0, 20.0, 30.0], 3),
    ],
)
def test_best_is_the_best_epoch(tmp_path, monkeypatch, method, criterion, values, best):
    scripted = iter(values)
    other = "student_clean" if criterion == "student_robust" else "student_robust"
    monkeypatch.setattr(
        engine.trainer, "evaluate", lambda *a, **k: {criterion: next(scripted), other: 50.0, "robust_images": 16}
    )
    run(tiny(tmp_path, method=method, save_freq=1))
    file = checkpoint(tmp_path, "best.pt")
    assert (file["best"]["epoch"], file["best"]["chosen_by"], file["best"][criterion]) == (best, criterion, max(values))
    assert file["best"]["chosen_on"] == "validation"
    assert_identical(file["student"], checkpoint(tmp_path, f"student-epoch{best:03d}.pt"))
    assert file["config"]["student"] == "wrn-10-1" and file["config"]["dataset"] == "digits"
    assert f"best.pt is epoch {best}" in log_of(tmp_path)


def npz(folder, seed=0, test_seed=0, classes=4):
    """A small learnable data set: the class is the bright colour, or that there is none."""
    folder.mkdir(parents=True, exist_ok=True)

    def images(n, seed):
        generator = np.random.default_rng(seed)
        x, y = generator.integers(0, 120, (n, 8, 8, 3), dtype=np.uint8), generator.integers(0, classes, n)
        for image, label in zip(x, y, strict=True):
            image[:, :, label : label + 1] += 130
        return x, y

    (x_train, y_train), (x_test, y_test) = images(100, seed), images(30, test_seed)
    np.savez(
        folder / "mine.npz",
        x_train=x_train,
        y_train=y_train,
        x_test=x_test,
        y_test=y_test,
        class_names=np.array([str(i) for i in range(classes)]),
    )
    return str(folder)


def test_with_val_size_the_test_images_are_never_touched(tmp_path):
    for folder, test_seed in (("a", 1), ("b", 2)):
        data = npz(tmp_path / folder, test_seed=test_seed)
        run(tiny(tmp_path / folder, dataset="mine", data_dir=data, limit_train=0))
    a, b = outcome(tmp_path / "a"), outcome(tmp_path / "b")
    assert a["checkpoints"]["last.pt"].pop("data") != b["checkpoints"]["last.pt"].pop("data")
    assert_identical(a, b)
    assert {line["split"] for line in metrics_of(tmp_path / "a")} == {"validation"}
    assert "TEST" not in log_of(tmp_path / "a")


def test_held_out_images_are_not_trained_on(tmp_path):
    data = npz(tmp_path)
    trainer = Trainer(tiny(tmp_path, dataset="mine", data_dir=data, limit_train=0))
    dataset = load_dataset("mine", data)
    assert (len(trainer.data.loader.images), len(trainer.data.x_eval)) == (60, 40)
    both = torch.cat([trainer.data.loader.images, trainer.data.x_eval]).permute(0, 2, 3, 1).reshape(100, -1).tolist()
    assert sorted(both) == sorted(dataset.x_train.reshape(100, -1).tolist())
    limited = Trainer(tiny(tmp_path, dataset="mine", data_dir=data, limit_train=20))
    assert torch.equal(limited.data.loader.images, trainer.data.loader.images[:20])
    assert torch.equal(limited.data.x_eval, trainer.data.x_eval)


def test_without_val_size_the_log_says_that_best_is_chosen_on_the_test_set(tmp_path):
    run(tiny(tmp_path, val_size=0, epochs=1))
    assert "best.pt is chosen on the TEST set" in log_of(tmp_path) and "--val-size N" in log_of(tmp_path)
    assert checkpoint(tmp_path, "best.pt")["best"]["chosen_on"] == "test"


def test_it_learns(tmp_path, monkeypatch):
    """Small steps of plain gradient descent on the same images make the loss smaller each time, on any processor."""
    load = engine.data.load_dataset
    monkeypatch.setattr(engine.data, "load_dataset", lambda *args: replace(load(*args), padding=0, flip=False))
    whole = {"dataset": "mine", "data_dir": npz(tmp_path), "limit_train": 0, "val_size": 0, "batch_size": 100}
    descent = {"lr": 0.01, "warmup_factor": 1.0, "decay_epochs": (), "momentum": 0.0, "weight_decay": 0.0}
    run(tiny(tmp_path, epochs=4, **whole, **descent))
    losses = [line["loss"] for line in metrics_of(tmp_path)]
    assert len(losses) == 4 and all(after < before - 0.01 for before, after in itertools.pairwise(losses)), losses


# -- failures: one sentence, a non-zero exit, nothing lost -----------------------------------------------------------


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_epoch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Logger, "plot", lambda self, final=False: None)
        run(tiny(folder, epochs=1))
    return folder


@pytest.fixture
def trained(tmp_path, one_epoch):
    """A folder with a run of one epoch."""
    shutil.copytree(one_epoch, tmp_path, dirs_exist_ok=True)
    return tmp_path


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


WRONG = {
    "method": ("--method=nfgsm", f"unknown method 'nfgsm': choose {', '.join(METHODS)}"),
    "student": ("--student=wrn-11-1", "a WideResNet's depth is 10, 16, 22"),
    "unknown student": ("--student=vgg", "unknown model 'vgg': choose wrn-DEPTH-WIDTH"),
    "guide": ("--guide=vgg", "unknown model 'vgg'"),
    "data set": ("--dataset=svhn", "unknown data set 'svhn'"),
    "batch size": ("--batch-size=0", "--batch-size 0 must be at least 1"),
    "negative epsilon": ("--epsilon=-0.1", "epsilon '-0.1' is not a number of 0 or more"),
    "large epsilon": ("--epsilon=255", "epsilon 255 is above 1"),
    "no number": ("--epsilon=small", "epsilon 'small' is not a number of 0 or more: write 0.031 or 8/255"),
    "flag": ("--learning-rate=1", "unrecognized arguments: --learning-rate=1; train_lbgat.py --help lists the flags"),
    "val size": ("--val-size=1437", "--val-size 1437 leaves nothing of 1437 training images"),
    "resume": ("--resume=nothing.pt", "no checkpoint at nothing.pt"),
    "seed": ("--seed=3", "is of another run (--seed 2 then, 3 now)"),
    "another student": ("--student=wrn-16-1", "is of another run (--student wrn-10-1 then, wrn-16-1 now)"),
    "another guide": ("--guide=resnet18", "(--guide wrn-10-1 then, resnet18 now)"),
    "another method": ("--method=trades", "(--method lbgat then, trades now)"),
    "another epsilon": ("--epsilon=8/255", "(--epsilon 0.031 then, 0.0313"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_settings(trained, capfd, what):
    before = contents(trained)
    status, out, err = program(capfd, *command_line(tiny(trained, epochs=2)), WRONG[what][0])
    assert_one_sentence(status, err, WRONG[what][1])
    assert out == "" and contents(trained) == before


def test_wrong_settings_in_a_process_of_its_own(tmp_path):
    done = subprocess.run(
        [sys.executable, str(PROGRAM), "--batch-size", "0"], capture_output=True, text=True, cwd=tmp_path
    )
    assert_one_sentence(done.returncode, done.stderr, "--batch-size 0 must be at least 1")
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_cuda_without_cuda(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("cuda", "cuda:1"):
        status, _, err = program(capfd, *command_line(tiny(tmp_path)), "--device", name)
        assert_one_sentence(status, err, f"--device {name}: ", "no such CUDA device; use --device cpu or auto")
    assert contents(tmp_path) == {}


def test_no_network_and_no_data(tmp_path, capfd, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    argv = command_line(tiny(tmp_path, dataset="cifar100", data_dir=str(tmp_path / "data")))
    status, _, err = program(capfd, *argv)
    assert_one_sentence(status, err, "cifar100 is not in", "could not be downloaded (no network)", "put cifar100.npz")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "is not a readable npz file"),
        (lambda path: np.savez(path, x_train=np.zeros(3)), "lacks the keys y_train, x_test, y_test: it must hold"),
    ],
)
def test_corrupt_data(tmp_path, capfd, damage, message):
    data = npz(tmp_path)
    damage(tmp_path / "mine.npz")
    status, _, err = program(capfd, *command_line(tiny(tmp_path, dataset="mine", data_dir=data)))
    assert_one_sentence(status, err, "mine.npz", message)


@pytest.mark.parametrize(("folder", "option"), [("Logs", "--log-dir"), ("checkpoints", "--checkpoint-dir")])
@pytest.mark.parametrize("inner", [False, True])
def test_unwritable_folder(tmp_path, capfd, folder, option, inner):
    """A file is in the folder's place: that stops root too."""
    place = tmp_path / folder / "run" if inner else tmp_path / folder
    place.parent.mkdir(exist_ok=True)
    place.write_text("")
    status, _, err = program(capfd, *command_line(tiny(tmp_path)))
    assert_one_sentence(
        status, err, f"cannot write to {tmp_path / folder / 'run'}", f"choose another folder with {option}"
    )


def test_resume_with_another_data_set_or_other_images(tmp_path, capfd):
    data = npz(tmp_path)
    config = tiny(tmp_path, dataset="mine", data_dir=data, epochs=1)
    run(config)
    before = contents(tmp_path / "checkpoints")
    status, _, err = program(capfd, *command_line(config), "--dataset=digits")
    assert_one_sentence(status, err, "last.pt is of another run", "--dataset mine then, digits now")
    npz(tmp_path, seed=5)
    status, _, err = program(capfd, *command_line(config))
    assert_one_sentence(status, err, "last.pt is of another run (the images are not the same)", "or --resume none")
    assert contents(tmp_path / "checkpoints") == before


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "weights"])
def test_resume_from_a_damaged_file(trained, capfd, how):
    path = trained / "checkpoints" / "run" / "last.pt"
    if how == "weights":  # a good file, but no training state
        path.write_bytes((path.parent / "student-epoch001.pt").read_bytes())
    else:
        path.write_bytes({"truncated": path.read_bytes()[:20000], "empty": b"", "text": b"hello\n"}[how])
    before = contents(trained)
    status, _, err = program(capfd, *command_line(tiny(trained, epochs=2)))
    assert_one_sentence(status, err, f"{path} is ", "--resume none")
    assert contents(trained) == before


def test_loss_that_turns_nan(tmp_path, capfd):
    """Epoch 1 is fine, epoch 2 diverges: the state after epoch 1 stays."""
    config = tiny(tmp_path, lr=1e6, warmup_factor=1e-7)
    status, _, err = program(capfd, *command_line(config))
    assert_one_sentence(
        status, err, "is no longer finite in epoch 2", "last.pt is the last good state", "--lr (now 1e+06)"
    )
    state = checkpoint(tmp_path)
    assert (state["epoch"], state["steps_done"]) == (2, 0)
    for network in ("student", "guide"):
        assert all(torch.isfinite(tensor).all() for tensor in state[network].values())
    assert [line["epoch"] for line in metrics_of(tmp_path)] == [1]
    assert not list(tmp_path.rglob("*.tmp"))
    reference = tmp_path / "reference"
    run(tiny(reference, lr=1e6, warmup_factor=1e-7, epochs=1))
    assert_identical(state["student"], checkpoint(reference)["student"])


@pytest.mark.parametrize("method", ["lbgat", "trades", "at", "natural"])
def test_loss_that_is_nan_from_the_start(tmp_path, capfd, method):
    status, _, err = program(capfd, *command_line(tiny(tmp_path, lr=1e30, method=method)))
    assert_one_sentence(status, err, "is no longer finite in epoch 1", "no state was saved yet: try a lower --lr")
    assert not list(tmp_path.rglob("*.pt"))


def test_nan_while_replacing_another_run(trained, capfd):
    """An old last.pt is not this run's good state."""
    status, _, err = program(capfd, *command_line(tiny(trained, lr=1e30, resume="none")))
    assert_one_sentence(status, err, "no state was saved yet")


def test_full_disk(trained, capfd, monkeypatch):
    before = contents(trained / "checkpoints")

    def full(*args, **kwargs):
        args[1].write(b"half a file")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    status, _, err = program(capfd, *command_line(tiny(trained, epochs=2)))
    assert_one_sentence(
        status, err, "could not write", "No space left on device", "free space or choose another folder"
    )
    assert contents(trained / "checkpoints") == before
    monkeypatch.undo()
    monkeypatch.setattr(Logger, "plot", lambda self, final=False: None)
    run(tiny(trained, epochs=2))
    assert [line["epoch"] for line in metrics_of(trained)] == [1, 2]


def test_full_disk_keeps_the_metrics(trained, capfd, monkeypatch):
    before = (trained / "Logs" / "run" / "metrics.jsonl").read_bytes()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)  # whatever is written whole is synced
    status, _, err = program(capfd, *command_line(tiny(trained, epochs=2)))
    assert_one_sentence(status, err, "No space left on device")
    assert (trained / "Logs" / "run" / "metrics.jsonl").read_bytes().startswith(before)


def test_a_torn_line_of_the_metrics_is_dropped(tmp_path, monkeypatch, one_go):
    with monkeypatch.context() as patch:
        at_step(patch, 5, send(signal.SIGTERM))
        with pytest.raises(Stopped):
            run(tiny(tmp_path))
    with open(tmp_path / "Logs" / "run" / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 2, "lr": 0.1, "loss_mse": 1.0')
    run(tiny(tmp_path))
    assert_identical(outcome(tmp_path), outcome(one_go))


def test_loggers_do_not_pile_up(tmp_path):
    for _ in range(2):
        run(tiny(tmp_path, epochs=1, resume="none"))
    assert logging.getLogger(f"lbgat.{tmp_path / 'Logs' / 'run'}").handlers == []
    assert log_of(tmp_path).count("finished") == 1


# -- a GPU -----------------------------------------------------------------------------------------------------------


def test_cuda_agrees_with_the_cpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: GPU training is not checked")
    digits = load_dataset("digits")
    spec = AttackSpec(epsilon=0.1, step_size=0.03, num_steps=4)
    results = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        student, guide = (create_model("wrn-10-1", 10).double().to(device) for _ in range(2))
        optimizer = torch.optim.SGD([*student.parameters(), *guide.parameters()], lr=0.1, momentum=0.9)
        step = create_step(student, guide, create_objective("lbgat", beta=6.0).to(device), optimizer, spec)
        results[device] = []
        for i in range(3):
            x, y = to_device(digits.x_train[32 * i : 32 * i + 32], digits.y_train[32 * i : 32 * i + 32], device)
            x = x.double() / 255
            start = starting_point(x.cpu(), spec, torch.Generator().manual_seed(i)).to(device)
            terms = run_step(step, [x], y, [start])
            results[device].append((step.x_adv[0].cpu(), {name: term.item() for name, term in terms.items()}))
        results[device].append((student.bn1.running_var.cpu(), {}))
    for (cpu, cpu_terms), (cuda, cuda_terms) in zip(results["cpu"], results["cuda"], strict=True):
        # A gradient of exactly zero in one summation order may have a sign in another: next to no pixel does.
        assert ((cpu - cuda).abs() > 1e-8).double().mean().item() < 1e-3
        assert cuda_terms == pytest.approx(cpu_terms, rel=1e-4)
    run(tiny(tmp_path, device="cuda"))
    assert [line["epoch"] for line in metrics_of(tmp_path)] == [1, 2, 3]
    assert all(tensor.device.type == "cpu" for tensor in checkpoint(tmp_path, "student-epoch003.pt").values())
    with pytest.raises(UserError):
        Trainer(tiny(tmp_path, device="cuda:99"))


def test_images_cannot_be_mirrored_beyond_their_size(tmp_path, monkeypatch):
    data = load_dataset("digits")
    monkeypatch.setattr("datasets.digits.load", lambda: replace(data, padding=16))
    with pytest.raises(UserError, match="reflect needs images larger than their padding of 16 pixels"):
        Trainer(tiny(tmp_path, crop_padding="reflect"))


def test_data_set_fields_reach_the_loader(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 3
    data = Dataset("d", images, labels, images, labels, ("a", "b", "c"), padding=1, flip=False)
    monkeypatch.setattr("datasets.digits.load", lambda: data)
    trainer = Trainer(tiny(tmp_path))
    assert (trainer.data.loader.padding, trainer.data.loader.flip, trainer.data.loader.seed) == (1, False, 2)
    assert trainer.student.fc.out_features == trainer.guide.fc.out_features == 3


# -- other people's networks -----------------------------------------------------------------------------------------

AWKWARD = """
import torch
from torch import nn

class Awkward(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.drop_rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]  # not to be had without values
        self.fixed = nn.Conv2d(3, 4, 3, 4, 1, bias=False).requires_grad_(False)
        self.norm, self.classify = nn.BatchNorm2d(4), nn.Linear(4, num_classes)
        self.unused = nn.Linear(4, num_classes)

    def forward(self, x):
        return self.classify(self.norm(self.fixed(x)).relu().mean((2, 3)))
"""


def test_unused_and_fixed_weights_train_with_weight_perturbation_and_resume(tmp_path, monkeypatch):
    """Also where the log would give the part of a known device's peak, for which such a network cannot be counted."""
    (tmp_path / "net.py").write_text(AWKWARD)
    monkeypatch.setattr(engine.trainer, "peak_flops", lambda device, precision: 1e12)
    flags = {"method": "trades", "student": f"{tmp_path / 'net.py'}:Awkward", "awp_gamma": 0.01}
    one = tiny(tmp_path / "one", epochs=2, **flags)
    trainer = run(one)
    fixed = trainer.student.fixed.weight.clone()
    run(tiny(tmp_path / "two", epochs=1, **flags))
    trainer = run(tiny(tmp_path / "two", epochs=2, **flags))
    assert torch.equal(trainer.student.fixed.weight, fixed)
    states = [checkpoint(tmp_path / name)["student"] for name in ("one", "two")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert "of_peak" not in metrics_of(tmp_path / "one")[-1]


def test_a_weight_of_the_method_that_nobody_would_train_is_refused(tmp_path, monkeypatch):
    class Learning(METHODS["at"]):
        def __init__(self, *args, **values):
            super().__init__(*args, **values)
            self.balance = torch.nn.Parameter(torch.zeros(()))

    monkeypatch.setitem(METHODS, "learning", Learning)
    with pytest.raises(UserError, match="learning has a trainable balance, which no optimizer has: make it a buffer"):
        Trainer(tiny(tmp_path, method="learning"))
