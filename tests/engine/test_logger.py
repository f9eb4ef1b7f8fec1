"""The log folder: what the log says at its start, on damage and on a full disk, and the time left."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch

from engine import logger
from engine.config import TrainConfig
from engine.logger import Logger, Pace, describe_run, read_metrics
from engine.train_state import Progress
from engine.trainer import Trainer
from tests.helpers import ROOT, tiny_run
from utils.errors import UserError
from utils.files import add_checksum
from utils.options import parse_epochs
from utils.provenance import PROVENANCE

ENTRIES = [{"epoch": epoch, "lr": 0.1, "loss": 2.5 / epoch} for epoch in (1, 2, 3)]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_entries_are_read_with_and_without_checksums(tmp_path):
    lines = [json.dumps(ENTRIES[0]), json.dumps(add_checksum(ENTRIES[1])), json.dumps(add_checksum(ENTRIES[2]))]
    assert read_metrics(write(tmp_path / "m", lines)) == ENTRIES


@pytest.mark.parametrize("damage", ["[", "3", '{"epoch": "2"}', "[" * 100_000, '{"epoch": 2, "loss": 9, "crc32": "0"}'])
def test_a_damaged_entry_is_dropped_with_a_warning_and_no_other(tmp_path, capsys, damage):
    config = tiny_run(tmp_path)
    lines = [json.dumps(add_checksum(entry)) for entry in ENTRIES]
    path = write(tmp_path / "Logs" / "run" / "metrics.jsonl", [lines[0], damage, lines[2]])
    with Logger(config, Progress(epoch=4)) as log:
        assert log.metrics == [ENTRIES[0], ENTRIES[2]]
    assert (
        f"warning: {path} was damaged: the entries of these epochs are missing from now on: 2"
        in capsys.readouterr().out
    )
    assert path.read_text().splitlines() == [lines[0], lines[2]]


def test_a_full_disk_of_the_log_is_one_sentence_that_names_the_file(tmp_path, monkeypatch, capsys):
    with Logger(tiny_run(tmp_path), Progress()) as log:

        def full(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        file = next(h for h in log._logger.handlers if isinstance(h, logger._LogFile))
        monkeypatch.setattr(file, "flush", full)
        monkeypatch.setattr(file, "format", full)
        with pytest.raises(UserError, match=r"could not write .*train\.log \(.*No space left on device\): free space"):
            log.info("a line")
        monkeypatch.undo()
    assert "Traceback" not in capsys.readouterr().err


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    folder = tmp_path / "Logs" / "run"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "train.log")
    with pytest.raises(UserError, match="no regular file"):
        Logger(tiny_run(tmp_path), Progress())


@pytest.mark.parametrize("streams", ["2>&-", "1>&-", ">/dev/full", "| head -1"])
def test_training_goes_to_its_end_without_its_output(tmp_path, streams):
    flags = (
        "--dataset digits --student wrn-10-1 --method natural --limit-train 16 --batch-size 16 --epochs 1 "
        "--eval-size 4 --val-size 8 --device cpu --mark run "
        f"--log-dir {tmp_path}/Logs --checkpoint-dir {tmp_path}/checkpoints"
    )
    line = f"{sys.executable} train_lbgat.py {flags} {streams}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (
        "Traceback" not in done.stderr and "Logging error" not in done.stderr and "Exception ignored" not in done.stderr
    )
    assert "finished" in (tmp_path / "Logs" / "run" / "train.log").read_text()
    assert (tmp_path / "checkpoints" / "run" / "last.pt").exists()


@pytest.mark.parametrize("program", ["train_lbgat.py", "eval_autoattack.py"])
def test_a_python_without_packages_gets_a_sentence(program):
    done = subprocess.run([sys.executable, "-S", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert (
        done.stderr.startswith("error: ")
        and "is not installed: source .venv/bin/activate, or pip install" in done.stderr
    )


def test_the_opening_says_what_is_trained_and_where_it_comes_from(tmp_path):
    late = {"decay_epochs": (76, 91), "awp_gamma": 0.005, "awp_start_epoch": 10}
    Trainer(tiny_run(tmp_path, method="trades", epochs=1, **late)).fit()
    log = (tmp_path / "Logs" / "run" / "train.log").read_text()
    for part in ("trades (beta 6)", "lr 0.1 multistep", "1 epochs of batches of 16", "seed 2", "CPU with "):
        assert part in log.splitlines()[0], part
    assert "warning: the learning rate does not decay at 76, 91, after the last epoch 1: --decay-epochs 3/4,9/10" in log
    assert "warning: there is no weight perturbation before epoch 10, after the last epoch 1: set --awp-start" in log
    settings = json.loads((tmp_path / "Logs" / "run" / "config.json").read_text())
    assert settings.keys() >= set(PROVENANCE) and settings["threads"] == torch.get_num_threads()


@pytest.mark.parametrize(("schedule", "late"), [("piecewise", ""), ("multistep", "at 4, after the last epoch 3")])
def test_a_decay_within_the_last_epoch_is_not_late(tmp_path, schedule, late):
    """Piecewise, 9/10 of 3 epochs is written 3.7, and decays when 2.7 epochs are done."""
    decays = ("9/10",) if schedule == "piecewise" else ("4",)
    flags = {"decay_epochs": parse_epochs(",".join(decays)), "schedule": schedule, "epochs": 3, "method": "natural"}
    Trainer(tiny_run(tmp_path, **flags)).fit()
    log = (tmp_path / "Logs" / "run" / "train.log").read_text()
    assert late in log and ("does not decay" in log) == bool(late)


def test_the_time_left_counts_steps_of_this_process_alone(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = Pace(epochs=5, steps=10)  # resumed in the middle of epoch 2: 3 steps are left of it
    for _ in range(3):
        pace.add(2.0)
    now[0] += 3 * 2.0 + 4.0  # and 4 s of evaluation
    assert pace.epoch_done(2) == 3 * (10 * 2.0 + 4.0)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"decay_epochs": (76, 91)},
            "lr 0.1 multistep, times 0.2 in epoch 1, times 0.1 from epoch 76, times 0.1 from epoch 91, mom",
        ),
        ({"decay_epochs": (6, 9), "decay_factors": (0.1, 0.5)}, "times 0.1 from epoch 6, times 0.5 from epoch 9, mom"),
        ({"schedule": "piecewise", "decay_epochs": (2.5,)}, "lr 0.1 piecewise, times 0.1 from epoch 2.5, momentum"),
        ({"decay_epochs": ()}, "lr 0.1 multistep, times 0.2 in epoch 1, momentum"),
        ({"schedule": "cosine"}, "lr 0.1 cosine, momentum"),
    ],
)
def test_the_opening_tells_each_decay(changes, text):
    assert text in describe_run(TrainConfig(**changes), False, 48)


@pytest.mark.parametrize(("flags", "warned"), [({"norm": "l2", "epsilon": 0.5}, True), ({"num_steps": 5}, False)])
def test_an_attack_that_cannot_reach_epsilon(tmp_path, flags, warned):
    Trainer(tiny_run(tmp_path, method="trades", epochs=1, **{"step_size": 0.007, "num_steps": 10} | flags)).fit()
    sentence = "warning: 10 attack steps reach 0.07 at most, less than epsilon 0.5: set --step-size or --step-ratio"
    log = (tmp_path / "Logs" / "run" / "train.log").read_text()
    assert (sentence in log) == ("less than epsilon" in log) == warned


def test_an_attack_that_starts_anywhere_in_the_ball_is_not_warned_of(tmp_path):
    Trainer(tiny_run(tmp_path, method="at", epochs=1, epsilon=0.1, step_size=0.007, num_steps=1)).fit()
    assert "less than epsilon" not in (tmp_path / "Logs" / "run" / "train.log").read_text()
