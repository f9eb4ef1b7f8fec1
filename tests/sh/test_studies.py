"""The studies, with a stand-in for Python that trains and attacks nothing: what is run, and how it resumes."""

import os
import shlex
import shutil
import subprocess
import time

import pytest

from engine.command_line import parse_train
from tests.helpers import ROOT

STUB = r"""#!/usr/bin/env bash
# Writes what a training and an attack leave behind, and logs its arguments. It fails at what the file "fail" names, and
# training stops early if "short" exists.
case $* in sh/check_requirements.py* | -c*) exit 0 ;; esac
echo "$(printf '%q ' "$@")" >>calls
if [ -e fail ] && [[ "$*" == *$(cat fail)* ]]; then
    echo "error: no space left" >&2
    exit "$(cat status 2>/dev/null || echo 1)"
fi
# Wait until two have started.
together() { for _ in {1..100}; do [ "$(grep -c start times)" -lt 2 ] || return 0; sleep 0.1; done; }
value() { while [ $# -gt 1 ]; do [ "$1" != "$flag" ] || echo "$2"; shift; done; }
flag=--log-dir; folder=$(value "$@")
flag=--mark; folder=$folder/$(value "$@")
case $* in
    train_lbgat.py*)
        mkdir -p "$folder"
        flag=--epochs; echo "{\"epochs\": $(value "$@")," >"$folder/config.json"
        echo "epoch 1" >"$folder/train.log"
        [ ! -e hang ] || trap 'sleep 1; touch "saved-$$"; exit 143' TERM
        [ ! -e hang ] || echo $$ >>pids
        while [ -e hang ]; do sleep 0.1; done
        [ ! -e slow ] || { echo start >>times; together; echo end >>times; }
        [ -e short ] || echo "finished: last.pt" >>"$folder/train.log"
        flag=--checkpoint-dir; last=$(value "$@"); flag=--mark; last=$last/$(value "$@")/last.pt
        [ -e "$last" ] || { mkdir -p "${last%/*}" && touch "$last"; } ;;
    *results.pgd20*) flag=--out; echo '{}' >"$(value "$@")" ;;
    eval_autoattack.py*)
        mkdir -p "$folder" && touch "$folder/autoattack.npz" && echo '{}' >"$folder/autoattack.json" && echo attacked ;;
esac
"""


@pytest.fixture
def study(tmp_path):
    shutil.copytree(ROOT / "sh", tmp_path / "sh")
    (tmp_path / "python").write_text(STUB)
    (tmp_path / "python").chmod(0o755)

    def run(*words, status=0, **variables):
        environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "PROCESSES": "1", **variables}
        done = subprocess.run(["bash", *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        calls = tmp_path / "calls"
        lines = [shlex.split(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done.stdout + done.stderr, lines

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
    attacks = of(calls, "eval_autoattack.py")
    assert len(attacks) == number * (2 if "cifar10" in script else 1)
    for call in attacks:
        flags = dict(zip(call[1::2], call[2::2], strict=True))
        assert flags["--checkpoint"].endswith("/last.pt") and flags["--n-examples"] in ("100", "500")
        if "cifar10" not in script:
            assert f"epsilon{flags['--epsilon']}-" in flags["--checkpoint"]
    assert calls[-1][:2] == ["-m", "results.study"]


@pytest.mark.parametrize(("dataset", "seeds"), [("digits", 3), ("cifar10", 2)])
def test_ablations_change_one_thing_each(study, dataset, seeds):
    _, calls = study("sh/ablations.sh", dataset)
    runs = trained(calls)
    assert len(runs) == 15 * seeds and not of(calls, "eval_autoattack.py")
    base = runs["lbgat0-seed1"]
    assert (base.method, base.parameters, base.guide) == ("lbgat", {"beta": 0, "mse_weight": 1}, base.student)
    expected = {
        "beta1": {"beta": 1}, "beta3": {"beta": 3}, "beta6": {"beta": 6}, "beta9": {"beta": 9},
        "smaller": {"guide": "wrn-10-1"}, "larger": {"guide": "wrn-10-4"},
        "mse0.25": {"mse_weight": 0.25}, "mse4": {"mse_weight": 4},
        "frozen": {"method": "lbgat-frozen", "guide_checkpoint": runs["frozen-seed1"].guide_checkpoint},
        "kl1": {"method": "lbgat-kl", "temperature": 1, "kd_weight": 1, "mse_weight": None},
        "kl4": {"method": "lbgat-kl", "temperature": 4, "kd_weight": 1, "mse_weight": None},
        "noclean": {"method": "lbgat-no-clean", "beta": None},
        "trades6": {"method": "trades", "beta": 6, "mse_weight": None},
        "natural": {"method": "natural", "beta": None, "mse_weight": None},
    }  # fmt: skip
    for name, changes in expected.items():
        ours, theirs = (config.as_dict() for config in (runs[f"{name}-seed1"], base))
        changed = {k: ours.get(k) for k in ours | theirs if ours.get(k) != theirs.get(k) and k != "mark"}
        unguided = name in ("trades6", "natural")  # they keep the default guide, which they do not have
        assert {k: v for k, v in changed.items() if not (unguided and k == "guide")} == changes, name
    assert runs["frozen-seed2"].guide_checkpoint == f"checkpoints/ablations-{dataset}/natural-seed2/last.pt"
    order = list(runs)
    assert all(order.index(f"natural-seed{seed}") < order.index("lbgat0-seed1") for seed in range(1, seeds + 1))
    assert calls[-1][:2] == ["-m", "results.ablations"]
    output, _ = study("sh/ablations.sh", status=2)
    assert output == "error: say on what: bash sh/ablations.sh digits, or cifar10\n"


def test_some_of_the_ablations(study):
    _, calls = study("sh/ablations.sh", "digits", VARIANTS="mse4 frozen", SEEDS="2")
    assert list(trained(calls)) == ["natural-seed2", "mse4-seed2", "frozen-seed2"]
    output, calls = study("sh/ablations.sh", "digits", status=2, VARIANTS="frozen mse5")
    assert output == "error: sh/ablations.sh has no variant mse5\n" and not trained(calls)


def wait_until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def of(calls, program):
    return [call for call in calls if program in call[:2]]


def test_a_study_resumes_where_it_stopped(study, tmp_path):
    study("sh/study_digits.sh", SEEDS="1")
    _, calls = study("sh/study_digits.sh", SEEDS="1")
    assert not of(calls, "eval_autoattack.py") and not of(calls, "results.pgd20")
    folder = tmp_path / "Logs/study-digits/at-epsilon0.2-seed1"
    (folder / "epsilon0.2/autoattack.json").unlink()
    (folder / "pgd20.json").unlink()
    _, calls = study("sh/study_digits.sh", SEEDS="1")
    assert [call[-1] for call in of(calls, "eval_autoattack.py")] == ["epsilon0.2"]
    assert [call[-1] for call in of(calls, "results.pgd20")] == ["Logs/study-digits/at-epsilon0.2-seed1/pgd20.json"]
    (tmp_path / "checkpoints/study-digits/at-epsilon0.1-seed1/last.pt").touch()  # trained on
    _, calls = study("sh/study_digits.sh", SEEDS="1")
    assert len(of(calls, "eval_autoattack.py")) == len(of(calls, "results.pgd20")) == 1


@pytest.mark.parametrize(("what", "name"), [
    ("train_lbgat.py", "training of"), ("results.pgd20", "PGD-20 on"), ("eval_autoattack.py", "AutoAttack on"),
])  # fmt: skip
def test_what_fails_ends_a_study_with_its_reason(study, tmp_path, what, name):
    (tmp_path / "fail").write_text(what)
    output, calls = study("sh/study_digits.sh", status=124, SEEDS="1")  # xargs: a command ended with 255
    assert f"error: {name} natural-epsilon0.1-seed1 failed: error: no space left" in output
    assert not of(calls, "results.study") and len(of(calls, "train_lbgat.py")) == 1


def test_the_gpu_study_ends_in_time_and_goes_on(study, tmp_path):
    (tmp_path / "short").touch()  # the time ends within the first training
    output, calls = study("sh/study_gpu.sh", "10")
    assert "next: training of study-gpu-resnet18/lbgat0-seed1; run the same command again" in output
    assert list(trained(calls)) == ["lbgat0-seed1", "trades6-seed1", "at-seed1", "lbgat6-seed1"]
    assert not of(calls, "eval_autoattack.py")
    (tmp_path / "short").unlink()
    (tmp_path / "fail").write_text("eval_autoattack.py --checkpoint checkpoints/study-gpu-resnet18/at-")
    (tmp_path / "status").write_text("124")  # within an attack, as timeout says it
    output, calls = study("sh/study_gpu.sh", "10")
    assert "next: attacks on study-gpu-resnet18/at-seed1; run the same command again" in output
    assert calls[-1][:2] == ["-m", "results.study"]  # the tables of what is there
    assert len(of(calls, "train_lbgat.py")) == 4
    (tmp_path / "fail").unlink()
    output, later = study("sh/study_gpu.sh", "10")
    assert "finished: every piece" in output
    calls += later
    order = [(call[0], call[call.index("--log-dir") + 1]) for call in calls if "--log-dir" in call]
    first = order.index(("eval_autoattack.py", "Logs/study-gpu-resnet18/lbgat0-seed1"))
    assert order[:first] == [("train_lbgat.py", "Logs/study-gpu-resnet18")] * 4  # all trained before one is attacked
    images = [call[call.index("--n-examples") + 1] for call in of(calls, "eval_autoattack.py")]
    assert images == ["1000"] * 5 + ["500"] * 2 + ["1000"] * 4
    assert len(of(calls, "benchmarks.autoattack")) == 1
    configs = [parse_train(call[1:]) for call in of(calls, "train_lbgat.py")]
    assert {c.student for c in configs} == {"resnet18", "wrn-34-10"} and {c.precision for c in configs} == {"bf16"}
    assert {c.dataset for c in configs} == {"cifar100", "cifar10"} and {c.epochs for c in configs} == {30}


@pytest.mark.parametrize(("what", "name"), [
    ("train_lbgat.py", "training of"), ("results.pgd20", "attacks on"), ("eval_autoattack.py", "attacks on"),
])  # fmt: skip
def test_what_fails_ends_the_gpu_study(study, tmp_path, what, name):
    (tmp_path / "fail").write_text(what)
    output, _ = study("sh/study_gpu.sh", "010", status=1)
    assert f"next: {name} study-gpu-resnet18/lbgat0-seed1, which failed: error: no space left (status 1); run" in output


def test_a_benchmark_that_fails_is_tried_again_and_ends_nothing(study, tmp_path):
    (tmp_path / "fail").write_text("benchmarks.train_step")
    output, _ = study("sh/study_gpu.sh", "10")
    assert "train-step-wrn-34-10 failed: see Logs/train-step-wrn-34-10.txt" in output and "finished: every" in output
    (tmp_path / "fail").unlink()
    _, calls = study("sh/study_gpu.sh", "10")
    assert len(of(calls, "benchmarks.train_step")) == 1 and not of(calls, "train_lbgat.py")


def test_the_gpu_study_waits_for_its_jobs_when_the_time_is_over(study, tmp_path):
    script = tmp_path / "sh/study_gpu.sh"
    text = script.read_text()
    at_the_third = 'need 60 "training of'
    assert at_the_third in text
    script.write_text(text.replace(at_the_third, f'[ "$name" != lbgat0 ] || deadline=0; {at_the_third}'))
    (tmp_path / "slow").touch()
    output, calls = study("sh/study_gpu.sh", "10", "resnet18", PROCESSES="2", METHODS="at trades6 lbgat0")
    assert "next: training of study-gpu-resnet18/lbgat0-seed1; run the same command again" in output
    assert sorted(trained(calls)) == ["at-seed1", "trades6-seed1"] and "unbound" not in output
    assert sorted((tmp_path / "times").read_text().split()) == ["end", "end", "start", "start"]


def test_the_jobs_of_a_gpu_study_end_with_it(study, tmp_path):
    (tmp_path / "hang").touch()
    pids = tmp_path / "pids"
    environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "PROCESSES": "2"}
    with subprocess.Popen(["bash", "sh/study_gpu.sh", "10", "resnet18"], cwd=tmp_path, env=environment) as script:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
        script.terminate()
    assert script.returncode == 143
    assert all((tmp_path / f"saved-{pid}").exists() for pid in pids.read_text().split())
    assert not list(tmp_path.glob("Logs/*/*errors*"))


def test_a_training_that_is_killed_silently_is_a_failure(study, tmp_path):
    (tmp_path / "fail").write_text("train_lbgat.py")
    (tmp_path / "status").write_text("137")
    output, _ = study("sh/study_gpu.sh", "10", "resnet18", status=1)
    assert "(status 137); run the same command again" in output


def test_pieces_methods_and_several_at_once(study, tmp_path):
    output, calls = study("sh/study_gpu.sh", "10", "resnet18", PROCESSES="3", METHODS="trades1 lbgat3", EPOCHS="5")
    assert "finished: resnet18 is in" in output
    runs = trained(calls)
    assert {mark: config.parameters["beta"] for mark, config in runs.items()} == {"trades1-seed1": 1, "lbgat3-seed1": 3}
    assert {config.epochs for config in runs.values()} == {5}
    assert len(of(calls, "eval_autoattack.py")) == 2 and not of(calls, "pytest")
    _, calls = study("sh/study_gpu.sh", "10", "resnet18", METHODS="trades1", EPOCHS="6")  # not finished with 5
    assert [call[-1] for call in of(calls, "train_lbgat.py")] and len(of(calls, "eval_autoattack.py")) == 0
    (tmp_path / "slow").touch()
    study("sh/study_gpu.sh", "10", "resnet18", PROCESSES="2", METHODS="at trades2 trades3", EPOCHS="5")
    assert (tmp_path / "times").read_text().split()[:2] == ["start", "start"]
    output, _ = study("sh/study_gpu.sh", "10", "resnet18", PROCESSES="0", status=2)
    assert output == "error: PROCESSES=0 must be a whole number from 1 on\n"
    output, _ = study("sh/study_gpu.sh", "10", "resnet19", status=2)
    assert output == "error: no piece resnet19: choose tests step resnet18 autoattack wrn-34-10 cifar10\n"


@pytest.mark.parametrize("minutes", [[], ["0"], ["3"], ["half"]])
def test_the_gpu_study_needs_its_minutes(tmp_path, minutes):
    done = subprocess.run(["bash", str(ROOT / "sh/study_gpu.sh"), *minutes], capture_output=True, text=True)
    assert (
        done.returncode == 2 and done.stderr == "error: say for how many minutes, at least 4: bash sh/study_gpu.sh 30\n"
    )
