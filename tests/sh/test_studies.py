"""The studies, with a stand-in for Python that trains and attacks nothing: what is run, and how it resumes."""

import os
import shlex
import shutil
import subprocess

import pytest

from engine.command_line import parse_train
from tests.helpers import ROOT

STUB = r"""#!/usr/bin/env bash
# Writes what a training (two epochs unless "short" exists) and an attack leave behind, and logs its arguments.
case $* in sh/check_requirements.py* | -c*) exit 0 ;; esac
printf '%q ' "$@" >>calls && echo >>calls
value() { while [ $# -gt 1 ]; do [ "$1" != "$flag" ] || echo "$2"; shift; done; }
flag=--log-dir; folder=$(value "$@")
flag=--mark; folder=$folder/$(value "$@")
case $1 in
    train_lbgat.py)
        mkdir -p "$folder"
        echo trained >"$folder/train.log"
        flag=--epochs; yes '{}' | head -n "$([ -e short ] && echo 1 || value "$@")" >"$folder/metrics.jsonl" ;;
    eval_autoattack.py)
        mkdir -p "$folder" && echo '{}' >"$folder/autoattack.json" && echo attacked ;;
esac
"""


@pytest.fixture
def study(tmp_path):
    shutil.copytree(ROOT / "sh", tmp_path / "sh")
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)

    def run(*words, **variables):
        environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "PROCESSES": "1", **variables}
        done = subprocess.run(["bash", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        calls = tmp_path / "calls"
        lines = [shlex.split(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done.stdout, lines

    return run


def trained(calls):
    """The configurations of the trainings, by method and seed."""
    configs = [parse_train(call[1:]) for call in calls if call[0] == "train_lbgat.py"]
    return {config.mark: config for config in configs}


def settings(config, *apart):
    """What the methods have in common: all that decides about training but for the named."""
    ignored = {"method", "guide", "beta", "mark", "seed", *apart}
    return {name: value for name, value in config.as_dict().items() if name not in ignored and value is not None}


@pytest.mark.parametrize(
    ("script", "seeds", "epsilons", "number"),
    [("study_digits.sh", 3, {"0.1": 0.1, "0.2": 0.2}, 36), ("study_cifar10_small.sh", 2, {"0.031": 0.031}, 11)],
)
def test_every_method_has_the_same_budget(study, script, seeds, epsilons, number):
    _, calls = study(f"sh/{script}")
    runs = trained(calls)
    assert len(runs) == number and {config.seed for config in runs.values()} == set(range(1, seeds + 1))
    assert {config.epsilon for config in runs.values()} == set(epsilons.values())
    for epsilon in epsilons.values():
        equal = [config for config in runs.values() if config.epsilon == epsilon]
        common = {name: value for name, value in settings(equal[0]).items() if name in settings(equal[1])}
        for config in equal:
            assert {name: settings(config)[name] for name in common} == common and config.val_size > 0
    attacks = [call for call in calls if call[0] == "eval_autoattack.py"]
    assert len(attacks) == number * (2 if "cifar10" in script else 1)
    for call in attacks:
        flags = dict(zip(call[1::2], call[2::2], strict=True))
        assert flags["--checkpoint"].endswith("/last.pt") and flags["--n-examples"] in ("100", "500")
        if "cifar10" not in script:
            assert f"epsilon{flags['--epsilon']}-" in flags["--checkpoint"]
    assert calls[-1][:2] == ["-m", "results.study"]


def test_a_study_resumes_where_it_stopped(study, tmp_path):
    study("sh/study_digits.sh", SEEDS="1")
    _, calls = study("sh/study_digits.sh", SEEDS="1")
    assert not [call for call in calls if call[0] == "eval_autoattack.py"]
    (tmp_path / "Logs/study-digits/at-epsilon0.2-seed1/epsilon0.2/autoattack.json").unlink()
    _, calls = study("sh/study_digits.sh", SEEDS="1")
    assert [call[-1] for call in calls if call[0] == "eval_autoattack.py"] == ["epsilon0.2"]


def test_the_gpu_study_ends_in_time_and_goes_on(study, tmp_path):
    output, calls = study("sh/study_gpu.sh", "1")
    assert "next: cuda-tests" in output and not calls
    (tmp_path / "short").touch()  # the time ends within the first training
    output, calls = study("sh/study_gpu.sh", "10")
    assert "next: training of study-gpu-resnet18/lbgat0-seed1" in output
    assert list(trained(calls)) == ["lbgat0-seed1"]
    (tmp_path / "short").unlink()
    output, calls = study("sh/study_gpu.sh", "10")
    assert "finished: every piece" in output
    order = [(call[0], call[call.index("--log-dir") + 1]) for call in calls if "--log-dir" in call]
    first = order.index(("eval_autoattack.py", "Logs/study-gpu-resnet18/lbgat0-seed1"))
    assert order[:first] == [("train_lbgat.py", "Logs/study-gpu-resnet18")] * 4  # all trained before one is attacked
    images = [call[call.index("--n-examples") + 1] for call in calls if call[0] == "eval_autoattack.py"]
    assert images == ["1000"] * 4 + ["500"] * 2 + ["1000"] * 4
    configs = [parse_train(call[1:]) for call in calls if call[0] == "train_lbgat.py"]
    assert {c.student for c in configs} == {"resnet18", "wrn-34-10"} and {c.precision for c in configs} == {"bf16"}
    assert {c.dataset for c in configs} == {"cifar100", "cifar10"} and {c.epochs for c in configs} == {30}


@pytest.mark.parametrize("minutes", [[], ["0"], ["half"]])
def test_the_gpu_study_needs_its_minutes(tmp_path, minutes):
    done = subprocess.run(["bash", str(ROOT / "sh/study_gpu.sh"), *minutes], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == "error: say for how many minutes: bash sh/study_gpu.sh 30\n"
