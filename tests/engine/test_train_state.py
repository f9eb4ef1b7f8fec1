"""What a run is resumed from: states of the version before, damaged and hostile files, and other runs' folders."""

import copy
import shutil

import pytest
import torch

from engine.logger import Logger
from engine.resume import momentum_buffers
from engine.trainer import Trainer
from tests.helpers import DATA, tiny_run
from utils.errors import UserError
from utils.files import lock_folder, read_metrics

TRADES = {"method": "trades", "guide": "resnet18-guide"}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch):
    monkeypatch.setattr(Logger, "plot", lambda self, final=False: None)


MASKED = """
import torch
from torch import nn

class Masked(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.last = nn.Linear(3, num_classes)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

    def forward(self, x):
        return self.last(x.mean((2, 3)))
"""


def last(folder):
    return folder / "checkpoints" / "run" / "last.pt"


@pytest.fixture
def interrupted(tmp_path):
    """The folder of a TRADES run that the version before stopped at epoch 2, step 2/3."""
    last(tmp_path).parent.mkdir(parents=True)
    shutil.copy(DATA / "last-of-the-version-before.pt", last(tmp_path))
    return tmp_path


def test_a_state_of_the_version_before_resumes(interrupted):
    """The last linear layer that the version before ended with, to what another processor's rounding changes."""
    saved = torch.load(last(interrupted), weights_only=True)
    trainer = Trainer(tiny_run(interrupted, **TRADES))
    assert (trainer.progress.epoch, trainer.progress.step) == (2, 2)
    assert all(torch.equal(v, saved["student"][k]) for k, v in trainer.student.state_dict().items())
    buffers = trainer.optimizer.state_dict()["state"]
    assert len(buffers) == len(list(trainer.student.parameters()))
    assert all(
        torch.equal(v["momentum_buffer"], saved["optimizer"]["state"][k]["momentum_buffer"]) for k, v in buffers.items()
    )
    trainer.fit()
    weight = trainer.student.state_dict()["fc.weight"].double()
    assert weight.norm().item() == pytest.approx(1.8715342676968578, rel=1e-3)
    assert weight.sum().item() == pytest.approx(-0.08520202062936733, abs=1e-3)


def put(value, *keys):
    """A change of the saved state: ``value`` (or what it makes of the old one) at a place, or its removal."""

    def change(state):
        part = state
        for key in keys[:-1]:
            part = part[key]
        if value is None:
            del part[keys[-1]]
        else:
            part[keys[-1]] = value(part[keys[-1]]) if callable(value) else value

    return change


BUFFER = ("optimizer", "state", 0, "momentum_buffer")
DAMAGE = {
    "no config": put(None, "config"),
    "config is a list": put([1], "config"),
    "no data": put(None, "data"),
    "no student": put(None, "student"),
    "student is a tensor": put(torch.zeros(3), "student"),
    "a weight is gone": put(None, "student", "fc.weight"),
    "a weight is a number": put(3, "student", "fc.weight"),
    "a weight of another shape": put(lambda w: w[:5], "student", "fc.weight"),
    "a weight of integers": put(lambda w: w.long(), "student", "fc.weight"),
    "a complex weight": put(lambda w: w.to(torch.complex64), "student", "fc.weight"),
    "a sparse weight": put(lambda w: w.to_sparse(), "student", "fc.weight"),
    "optimizer is a list": put([1, 2], "optimizer"),
    "no optimizer state": put(None, "optimizer", "state"),
    "a momentum of another size": put(lambda b: b.flatten()[:-1], *BUFFER),
    "an empty momentum": put(torch.zeros(0), *BUFFER),
    "a momentum in double": put(lambda b: b.double(), *BUFFER),
    "a momentum is a word": put("fast", *BUFFER),
    "a momentum is gone": put(None, "optimizer", "state", 0),
    "one momentum too many": put({"momentum_buffer": torch.zeros(1)}, "optimizer", "state", 999),
    "objective is a word": put("trades", "objective"),
    "epoch is text": put("2", "epoch"),
    "epoch is 0": put(0, "epoch"),
    "epoch is a tensor": put(torch.tensor(2), "epoch"),
    "step is beyond the epoch": put(4, "steps_done"),
    "step is negative": put(-1, "steps_done"),
    "seconds are not finite": put(float("nan"), "seconds"),
    "sums are a list": put([1.0], "sums"),
    "a sum is a vector": put(torch.zeros(3), "sums", "ce"),
    "best is a list": put([1], "best"),
    "best lacks its epoch": put(None, "best", "epoch"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_part_is_one_sentence(interrupted, what):
    state = torch.load(last(interrupted), weights_only=True)
    DAMAGE[what](state)
    torch.save(state, last(interrupted))
    before = last(interrupted).read_bytes()
    with pytest.raises(UserError) as caught:
        Trainer(tiny_run(interrupted, **TRADES))
    assert str(last(interrupted)) in str(caught.value) and "\n" not in str(caught.value)
    assert last(interrupted).read_bytes() == before


def test_the_settings_are_the_configurations_whatever_the_file_says(interrupted):
    state = torch.load(last(interrupted), weights_only=True)
    state["optimizer"]["param_groups"][0] |= {"momentum": 0.1, "weight_decay": 9.0, "maximize": True, "nesterov": True}
    torch.save(state, last(interrupted))
    group = Trainer(tiny_run(interrupted, **TRADES)).optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["maximize"], group["nesterov"]) == (0.9, 2e-4, False, False)


def test_momentum_buffers_are_compared_with_their_parameters():
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9)
    good = {"state": {i: {"momentum_buffer": torch.ones_like(p)} for i, p in enumerate(parameters)}}
    assert momentum_buffers(good, optimizer).keys() == {0, 1}
    assert momentum_buffers({"state": {}}, optimizer) == {}
    for index, buffer in ((0, torch.ones(3, 2)), (1, torch.ones(4).double()), (1, torch.ones(3))):
        bad = copy.deepcopy(good)
        bad["state"][index]["momentum_buffer"] = buffer
        with pytest.raises(ValueError, match=f"momentum buffer {index}"):
            momentum_buffers(bad, optimizer)


def test_a_momentum_that_is_not_finite_is_never_saved(tmp_path):
    trainer = Trainer(tiny_run(tmp_path, method="natural", epochs=1))
    trainer.fit()
    next(iter(trainer.optimizer.state.values()))["momentum_buffer"][0] = float("nan")
    before = last(tmp_path).read_bytes()
    with pytest.raises(UserError, match="the momentum of the optimizer is no longer finite"):
        trainer.checkpoints.save_last()
    assert last(tmp_path).read_bytes() == before


def test_another_runs_folder_is_not_overwritten(tmp_path):
    for mark in ("a", "b"):
        Trainer(tiny_run(tmp_path, method="natural", epochs=1, mark=mark)).fit()
    before = (tmp_path / "checkpoints" / "b" / "last.pt").read_bytes()
    path = tmp_path / "checkpoints" / "a" / "last.pt"
    with pytest.raises(UserError, match=r"would replace the run in .*/b: pass another --mark"):
        Trainer(tiny_run(tmp_path, method="natural", epochs=2, mark="b", resume=str(path)))
    assert (tmp_path / "checkpoints" / "b" / "last.pt").read_bytes() == before
    Trainer(tiny_run(tmp_path, method="natural", epochs=2, mark="c", resume=str(path))).fit()
    best = torch.load(tmp_path / "checkpoints" / "c" / "best.pt", weights_only=True)["best"]
    assert best == torch.load(tmp_path / "checkpoints" / "c" / "last.pt", weights_only=True)["best"]
    assert f"resuming at epoch 2, step 0/3, from {path}" in (tmp_path / "Logs" / "c" / "train.log").read_text()
    a, c = (read_metrics(tmp_path / "Logs" / mark / "metrics.jsonl") for mark in ("a", "c"))
    assert c[0] == a[0] and [entry["epoch"] for entry in c] == [1, 2]


def test_weights_and_the_log_of_another_run_are_neither_replaced_nor_continued(tmp_path):
    def fit(**settings):
        Trainer(tiny_run(tmp_path, **{"method": "natural", "epochs": 1, "mark": "b"} | settings)).fit()

    weights, logs = tmp_path / "checkpoints" / "b", tmp_path / "Logs" / "b"
    fit(mark="a")
    fit(lr=0.02)
    kept = {path: path.read_bytes() for path in (weights / "best.pt", logs / "metrics.jsonl", logs / "train.log")}
    with pytest.raises(UserError, match=r"Logs/b holds another run \(--lr 0.02 then, 0.1 now; --checkpoint-dir"):
        fit(checkpoint_dir=str(tmp_path / "elsewhere"))
    (weights / "last.pt").unlink()
    path = str(tmp_path / "checkpoints" / "a" / "last.pt")
    for settings in ({}, {"resume": path, "epochs": 2}):
        with pytest.raises(
            UserError, match=r"checkpoints/b holds another run \(--lr 0.02 then, 0.1 now\): pass another --mark"
        ):
            fit(**settings)
    assert {path: path.read_bytes() for path in kept} == kept
    fit(lr=0.02)  # as after a kill before the first last.pt
    shutil.rmtree(weights)
    with pytest.raises(UserError, match=r"Logs/b holds another run \(--lr 0.02 then, 0.1 now\)"):
        fit()
    fit(resume="none")
    (weights / "last.pt").unlink()
    (weights / "best.pt").unlink()
    with pytest.raises(UserError, match=r"checkpoints/b holds another run \(it does not say which\)"):
        fit()


def test_a_replaced_run_leaves_nothing(tmp_path):
    Trainer(tiny_run(tmp_path, method="natural", epochs=3, save_freq=1)).fit()
    Trainer(tiny_run(tmp_path, method="natural", epochs=1, save_freq=1, seed=5, resume="none")).fit()
    assert sorted(p.name for p in last(tmp_path).parent.glob("*.pt")) == ["best.pt", "last.pt", "student-epoch001.pt"]


def test_a_finished_run_rewrites_nothing(tmp_path, capsys):
    Trainer(tiny_run(tmp_path, method="natural", epochs=2)).fit()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    Trainer(tiny_run(tmp_path, method="natural", epochs=1)).fit()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert "already trained for 2 epochs: nothing to do" in capsys.readouterr().out


def test_a_dangling_link_is_an_error(tmp_path):
    last(tmp_path).parent.mkdir(parents=True)
    last(tmp_path).symlink_to("nowhere.pt")
    with pytest.raises(UserError, match=r"no checkpoint at .*--resume none"):
        Trainer(tiny_run(tmp_path, method="natural"))


def test_another_number_of_threads_gives_a_warning(tmp_path):
    Trainer(tiny_run(tmp_path, method="natural", epochs=1)).fit()
    state = torch.load(last(tmp_path), weights_only=True)
    torch.save(state | {"threads": 77}, last(tmp_path))
    Trainer(tiny_run(tmp_path, method="natural", epochs=2)).fit()
    assert "warning: saved with 77 CPU threads, now " in (tmp_path / "Logs" / "run" / "train.log").read_text()


def test_one_training_at_a_time_in_a_folder(tmp_path):
    first, second = (Trainer(tiny_run(tmp_path, method="natural", epochs=1)) for _ in range(2))
    last(tmp_path).parent.mkdir(parents=True)
    with lock_folder(last(tmp_path).parent, "training"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(UserError, match=r"another training is running in .*: wait for it, or use another --mark"):
            first.fit()
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "Logs" / "run").mkdir(parents=True)
    with (
        lock_folder(tmp_path / "Logs" / "run", "training"),
        pytest.raises(UserError, match="another training is running"),
    ):
        first.fit()
    first.fit()
    saved, log = last(tmp_path).read_bytes(), (tmp_path / "Logs" / "run" / "train.log").read_bytes()
    with pytest.raises(UserError, match=r"another training has just written .*last\.pt: run the command again"):
        second.fit()
    assert last(tmp_path).read_bytes() == saved and (tmp_path / "Logs" / "run" / "train.log").read_bytes() == log


def test_a_flipped_bit_in_a_weight_is_noticed(interrupted):
    content = bytearray(last(interrupted).read_bytes())
    state = torch.load(last(interrupted), weights_only=True)
    values = state["student"]["fc.weight"].numpy().tobytes()
    content[content.index(values) + len(values) // 2] ^= 1
    last(interrupted).write_bytes(content)
    other = torch.load(last(interrupted), weights_only=True)["student"]["fc.weight"]
    assert not torch.equal(other, state["student"]["fc.weight"])  # torch itself does not notice
    with pytest.raises(UserError, match="is damaged, truncated or not a torch checkpoint"):
        Trainer(tiny_run(interrupted, **TRADES))


def test_changed_code_of_the_method_is_a_warning(tmp_path, monkeypatch):
    Trainer(tiny_run(tmp_path, method="natural", epochs=1)).fit()
    assert len(torch.load(last(tmp_path), weights_only=True)["code"]) == 64
    Trainer(tiny_run(tmp_path, method="natural", epochs=2)).fit()
    log, warning = tmp_path / "Logs" / "run" / "train.log", "the code of the method or of its step has changed"
    assert warning not in log.read_text()
    monkeypatch.setattr("engine.resume.code_hash", lambda *classes: "1" * 64)
    Trainer(tiny_run(tmp_path, method="natural", epochs=3)).fit()
    assert warning in log.read_text()


def test_the_log_of_a_run_that_is_replaced_is_kept(tmp_path):
    Trainer(tiny_run(tmp_path, method="natural", epochs=1)).fit()
    log = (tmp_path / "Logs" / "run" / "train.log").read_text()
    Trainer(tiny_run(tmp_path, method="natural", epochs=1, lr=0.05, resume="none")).fit()
    (kept,) = (tmp_path / "Logs" / "run").glob("earlier-*")
    assert (kept / "train.log").read_text() == log and len(read_metrics(kept / "metrics.jsonl")) == 1
    assert f"an earlier run was here and is now in {kept}" in (tmp_path / "Logs" / "run" / "train.log").read_text()


def test_a_buffer_may_hold_infinities(tmp_path):
    (tmp_path / "masked.py").write_text(MASKED)
    Trainer(tiny_run(tmp_path, method="natural", epochs=1, student=f"{tmp_path}/masked.py:Masked")).fit()
    assert torch.load(last(tmp_path), weights_only=True)["student"]["mask"].tolist() == [0, float("-inf")]


def test_a_network_of_ones_own_resumes_from_another_folder(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "masked.py").write_text(MASKED)
    for name, epochs in (("here", 1), ("there", 2)):
        student = f"{tmp_path}/{name}/masked.py:Masked"
        Trainer(tiny_run(tmp_path, method="natural", epochs=epochs, student=student)).fit()
    assert "resuming at epoch 2" in (tmp_path / "Logs" / "run" / "train.log").read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": 10**400},
        {"train_robust": [10**400]},
        {"best": {"epoch": "x", "chosen_by": "student_robust", "student_robust": 1.0}},
        {"best": {"epoch": 1, "chosen_by": "student_robust", "student_robust": "a"}},
        {"best": {"epoch": 1, "chosen_by": "student_robust"}},
        {"best": 3},
    ],
    ids=str,
)
def test_damaged_counts_and_figures_are_a_sentence(interrupted, change):
    state = torch.load(last(interrupted), weights_only=True)
    torch.save({**state, **change}, last(interrupted))
    with pytest.raises(UserError, match=r"last\.pt is damaged"):
        Trainer(tiny_run(interrupted, **TRADES))


def test_a_tensor_among_the_settings_is_a_sentence(interrupted):
    state = torch.load(last(interrupted), weights_only=True)
    torch.save({**state, "config": {**state["config"], "lr": torch.tensor([1.0, 2.0])}}, last(interrupted))
    with pytest.raises(UserError, match=r"last\.pt is damaged"):
        Trainer(tiny_run(interrupted, **TRADES))


def test_a_run_whose_folder_is_a_link_or_has_moved_keeps_its_log(tmp_path):
    def epochs():
        return [entry["epoch"] for entry in read_metrics(tmp_path / "Logs" / "run" / "metrics.jsonl")]

    (tmp_path / "scratch" / "job7").mkdir(parents=True)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "run").symlink_to(tmp_path / "scratch" / "job7")
    for n in (1, 2):
        Trainer(tiny_run(tmp_path, method="natural", epochs=n)).fit()
    assert epochs() == [1, 2]
    (tmp_path / "checkpoints" / "run").unlink()
    resume = str(tmp_path / "scratch" / "job7" / "last.pt")
    Trainer(tiny_run(tmp_path, method="natural", epochs=3, resume=resume)).fit()
    assert epochs() == [1, 2, 3]
    assert "is not there" not in (tmp_path / "Logs" / "run" / "train.log").read_text()


def test_foreign_weights_in_the_folder_are_no_other_run(tmp_path):
    last(tmp_path).parent.mkdir(parents=True)
    (last(tmp_path).parent / "pretrained.pt").touch()
    Trainer(tiny_run(tmp_path, method="natural", epochs=1)).fit()
    assert last(tmp_path).exists()
