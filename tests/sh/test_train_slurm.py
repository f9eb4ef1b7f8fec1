"""sh/train_slurm.sh with stand-ins of srun and scontrol: a job that is told to stop saves, queues again and resumes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.processes import wait_until
from tests.helpers import ROOT, command_line, tiny_run


def submit(folder: Path, srun: str, *flags: str, python: str = sys.executable) -> subprocess.Popen:
    """Start the job; what scontrol is asked to requeue goes to ``folder/requeued``."""
    stubs = {"srun": srun, "scontrol": f'case $1 in show) echo localhost;; *) echo "$@" >>{folder}/requeued;; esac'}
    for name, text in stubs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    slurm = {"SUBMIT_DIR": str(ROOT), "JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "1", "GPUS_ON_NODE": "2"}
    env = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    env |= {"SLURM_JOB_ID": str(os.getpid()), "PYTHON": python, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "sh/train_slurm.sh"), *flags]
    with open(folder / "output", "a") as output:
        return subprocess.Popen(command, env=env, cwd="/", stdout=output, stderr=output)


@pytest.fixture
def stub(tmp_path: Path) -> str:
    """Stands in for a Python that has every package."""
    (tmp_path / "python").write_text("#!/bin/sh\n")
    (tmp_path / "python").chmod(0o755)
    return str(tmp_path / "python")


@pytest.mark.parametrize("status", [0, 1, 7])
def test_a_job_that_ends_by_itself_has_its_status(tmp_path: Path, stub: str, status: int):
    assert submit(tmp_path, f"exit {status}", python=stub).wait(60) == status
    assert not (tmp_path / "requeued").exists()


def test_a_recipe_gives_its_flags_and_further_ones(tmp_path: Path, stub: str):
    srun = f'for word; do echo "$word" >>{tmp_path}/words; done'
    assert submit(tmp_path, srun, "sh/train_trades6_cifar10_wrn34_10.sh", "--seed", "2", python=stub).wait(60) == 0
    words = (tmp_path / "words").read_text().splitlines()
    flags = words[words.index("train_lbgat.py") + 1 :]
    assert flags[:4] == ["--dataset", "cifar10", "--method", "trades"] and flags[-2:] == ["--seed", "2"]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_is_told_to_stop_queues_again(tmp_path: Path, stub: str, number: signal.Signals):
    srun = f"trap 'touch {tmp_path}/saved; exit 1' TERM; touch {tmp_path}/started; while :; do sleep 0.05; done"
    job = submit(tmp_path, srun, python=stub)
    wait_until((tmp_path / "started").exists)
    job.send_signal(number)
    assert job.wait(60) == 75
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "requeued").read_text() == f"requeue {os.getpid()}\n"


def test_a_job_that_finishes_although_told_to_stop_does_not_queue_again(tmp_path: Path, stub: str):
    srun = f"trap 'exit 0' TERM; touch {tmp_path}/started; while :; do sleep 0.05; done"
    job = submit(tmp_path, srun, python=stub)
    wait_until((tmp_path / "started").exists)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(60) == 0 and not (tmp_path / "requeued").exists()


def test_two_processes_by_torchrun_are_stopped_and_resume(tmp_path: Path):
    """The real program under the real torchrun; srun only passes the command and signals on."""
    flags = command_line(tiny_run(tmp_path, method="natural", epochs=12, limit_train=32, val_size=4, eval_size=1))
    job = submit(tmp_path, 'shift; exec "$@"', *flags)
    metrics = tmp_path / "Logs/run/metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text())
    job.send_signal(signal.SIGUSR1)
    assert job.wait(120) == 75, (tmp_path / "output").read_text()
    output = (tmp_path / "output").read_text()
    assert output.count("stopped by SIGTERM at epoch ") == 1
    state = torch.load(tmp_path / "checkpoints/run/last.pt")
    assert state["processes"] == 2 and state["epoch"] < 12
    assert submit(tmp_path, 'shift; exec "$@"', *flags).wait(240) == 0, (tmp_path / "output").read_text()
    assert f"resuming at epoch {state['epoch']}, step " in (tmp_path / "output").read_text()
    assert torch.load(tmp_path / "checkpoints/run/last.pt")["epoch"] == 13
