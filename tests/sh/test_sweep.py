"""sh/sweep.sh with a recipe that trains nothing, and the table that it ends with."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest

from report.sweep import read_sweep, spread, sweep_table
from report.tables import NONE
from tests.helpers import ROOT
from utils.errors import UserError
from utils.files import file_hash

RECIPE = """
. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt
echo "$*" >>calls
exec "$PYTHON" - "$@" <<'END'
import json, sys
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = Path(flags["--log-dir"], flags["--mark"])
folder.mkdir(parents=True, exist_ok=True)
seed, beta = int(flags["--seed"]), float(flags.get("--beta", 6))
(folder / "config.json").write_text(json.dumps({"dataset": "digits", "seed": seed, "beta": beta}))
entry = {"epoch": 3, "loss": 1.0, "student_clean": 50.0 + seed, "student_robust": 20.0 + beta + 2 * seed}
(folder / "metrics.jsonl").write_text(json.dumps(entry) + chr(10))
if Path("stop").exists():
    (folder / "train.log").write_text("a stopped by --max-minutes 1 at epoch 2\\nb" + chr(10))
sys.exit(1 if Path("fail").exists() and seed == 3 else 0)
END
"""


@pytest.fixture
def sweep(tmp_path):
    for room in ("sh", "report", "utils"):
        shutil.copytree(ROOT / room, tmp_path / room)
    for file in ROOT.glob("requirements*.txt"):
        shutil.copy(file, tmp_path)
    (tmp_path / "sh" / "train_x.sh").write_text(RECIPE)

    def run(*words):
        command = ["bash", "sh/sweep.sh", *words]
        environment = {**os.environ, "PYTHON": sys.executable}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def test_seeds_resume_and_table(sweep, tmp_path):
    (tmp_path / "fail").touch()
    failed = sweep("sh/train_x.sh", "--seeds", "1,2,3", "--epochs", "3")
    assert failed.returncode != 0 and "table:" not in failed.stdout
    (tmp_path / "fail").unlink()
    done = sweep("sh/train_x.sh", "--seeds", "1,2,3", "--epochs", "3")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 2
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[:4] for call in calls] == [["--epochs", "3", "--seed", seed] for seed in "1233"]
    folder = tmp_path / "Logs" / "sweep-x"
    page = (folder / "sweep.md").read_text()
    assert "| sweep-x |    3 |      3 | 52.00 ± 1.00 | 30.00 ± 2.00 |" in page and page in done.stdout.join([page, ""])
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [(row["run"], row["clean"], row["PGD-20"]) for row in rows] == [
        (f"seed{seed}", str(50.0 + seed), str(26.0 + 2 * seed)) for seed in (1, 2, 3)
    ]
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"


def test_a_stopped_run_is_not_finished(sweep, tmp_path):
    (tmp_path / "stop").touch()
    stopped = sweep("sh/train_x.sh", "--seeds", "1,2")
    assert stopped.returncode == 75 and "stopped at seed1: the same command continues the sweep" in stopped.stderr
    (tmp_path / "stop").unlink()
    (tmp_path / "Logs" / "sweep-x" / "seed1" / "train.log").unlink()
    done = sweep("sh/train_x.sh", "--seeds", "1,2")
    assert done.returncode == 0 and "finished before" not in done.stdout


def test_values_of_a_flag(sweep, tmp_path):
    done = sweep("sh/train_x.sh", "--values", "beta=1,6", "--seeds", "1,2", "--name", "betas")
    assert done.returncode == 0, done.stderr
    groups = read_sweep(tmp_path / "Logs" / "betas", "beta")
    assert {name: len(runs) for name, runs in groups.items()} == {"beta 1.0": 2, "beta 6.0": 2}
    assert [row[0] for row in sweep_table(groups).rows] == ["beta 1.0", "beta 6.0"]
    assert [row[-1] for row in sweep_table(groups).rows] == ["24.00 ± 1.41", "29.00 ± 1.41"]
    with pytest.raises(UserError, match="does not tell the setting 'gamma'"):
        read_sweep(tmp_path / "Logs" / "betas", "gamma")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "pass a recipe and the seeds"),
        (["sh/none.sh", "--seeds", "1"], "pass a recipe and the seeds"),
        (["requirements.txt", "--seeds", "1"], "pass a recipe and the seeds"),
        (["sh/train_x.sh"], "pass --seeds 1,2,3 or --values FLAG=A,B,C"),
        (["sh/train_x.sh", "--values", "beta"], "write FLAG=A,B,C, such as beta=1,3,6"),
        (["sh/train_x.sh", "--seeds", "1", "--mark", "a"], "--mark is set by the sweep"),
        (["sh/train_x.sh", "--seeds", "1", "--seed=5"], "--seed is set by the sweep"),
        (["sh/train_x.sh", "--seeds", "1", "--name", "../a"], "--name ../a names a folder"),
    ],
)
def test_bad_input_is_one_sentence(sweep, words, sentence):
    done = sweep(*words)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and sentence in done.stderr


def test_spread_and_missing_runs(tmp_path):
    assert (spread([1.0]), spread([1.0, 2.0, 4.0], 2)) == ("1.0", "2.33 ± 1.53")
    with pytest.raises(UserError, match="holds no run: pass the folder of a sweep"):
        read_sweep(tmp_path, "")


def test_what_was_not_measured_alike_is_kept_apart(tmp_path, monkeypatch):
    reports = {}
    for name, dataset, version in (("a", "digits", "standard"), ("b", "digits", "dev"), ("c", "cifar10", "standard")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"dataset": dataset}))
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "student_clean": 50.0}) + "\n")
        (folder / "autoattack.json").touch()
        reports[folder] = {
            "version": version,
            "attacks": ["apgd-ce"],
            "epsilon_text": "0.1",
            "norm": "linf",
            "n": 9,
            "robust_accuracy": 1,
        }
    monkeypatch.setattr("report.sweep.read_report", lambda file: reports[file.parent])
    with pytest.raises(UserError, match="holds runs on cifar10, digits: pass a folder with those on one data set"):
        read_sweep(tmp_path, "")
    assert [len(runs) for runs in read_sweep(tmp_path, "dataset").values()] == [2, 1]
    shutil.rmtree(tmp_path / "c")
    table = sweep_table(read_sweep(tmp_path, ""))
    attacks = ["AutoAttack, epsilon 0.1, 9 images", "upper bound by AutoAttack dev: apgd-ce, epsilon 0.1, 9 images"]
    assert table.head[-2:] == attacks and table.rows[0][-2:] == [NONE, NONE]  # neither is of both runs


@pytest.fixture
def two(tmp_path):
    """Two runs of a folder that differ in their seed."""
    for seed in (1, 2):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        config = {"dataset": "digits", "seed": seed, "lr": 0.1, "mark": folder.name, "commit": str(seed)}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "student_clean": 50.0}) + "\n")
    return tmp_path


def test_runs_that_differ_in_more_than_their_seed_are_not_averaged(two, capsys):
    assert sweep_table(read_sweep(two, "")).rows[0][1:] == ["2", "1", "50.00 ± 0.00"]
    (two / "seed3").mkdir()
    (two / "seed3" / "metrics.jsonl").touch()
    assert len(read_sweep(two, "")[two.name]) == 2
    assert "notice: no finished epoch, left out: seed3" in capsys.readouterr().err
    config = json.loads((two / "seed2" / "config.json").read_text())
    (two / "seed2" / "config.json").write_text(json.dumps({**config, "lr": 0.2}))
    with pytest.raises(UserError, match="seed1 and seed2 differ in lr: pass --by lr, or a folder"):
        read_sweep(two, "")
    assert list(read_sweep(two, "lr")) == ["lr 0.1", "lr 0.2"]


def test_an_attack_on_weights_that_were_replaced_is_left_out(two, capsys, monkeypatch):
    weights = two / "last.pt"
    weights.write_text("new")
    report = {
        "version": "standard", "attacks": [], "epsilon_text": "0.1", "norm": "l2", "n": 9, "robust_accuracy": 40.0,
        "checkpoint": str(weights), "checkpoint_sha256": file_hash(weights),
    }  # fmt: skip
    monkeypatch.setattr("report.sweep.read_report", lambda file: report)
    for seed in (1, 2):
        (two / f"seed{seed}" / "autoattack.json").touch()
    table = sweep_table(read_sweep(two, ""))
    assert (table.head[-1], table.rows[0][-1]) == ("AutoAttack, epsilon 0.1 in l2, 9 images", "40.00 ± 0.00")
    weights.write_text("newer")
    assert sweep_table(read_sweep(two, "")).head[-1] == "clean"
    assert f"is of other weights than {weights} has now, left out: attack it again" in capsys.readouterr().err
