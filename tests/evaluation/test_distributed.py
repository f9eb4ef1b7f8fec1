"""Several processes, and processes killed at any moment, leave the report of one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.distributed import TCPStore

import eval_autoattack
from engine.train_state import FORMAT
from tests.helpers import ROOT, trained
from utils.distributed import Team
from utils.errors import run_program

FLAGS = (
    "--version", "custom", "--attacks", "apgd-ce,apgd-dlr", "--n-examples", "5", "--batch-size", "2", "--device", "cpu",
    "--epsilon", "0.02", "--epsilons", "0",
)  # fmt: skip
MAY_DIFFER = {"seconds", "throughput", "processes", "command", "date", "hardware"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints") / "net.pt"
    model = trained("wrn-10-1-natural")
    config = {"student": "wrn-10-1", "dataset": "digits"}
    torch.save({"format": FORMAT, "config": config, "student": model.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    """The command line of an evaluation, its log folder when one process did it, and how long that took."""
    folder = tmp_path_factory.mktemp("alone")
    started = time.monotonic()
    assert status(start(checkpoint, folder)) == 0, (folder / "output").read_text()
    found = set(np.load(folder / "run/autoattack.npz")["broken_by"])
    assert {"", "apgd-ce"} <= found  # the comparisons would be worth little otherwise
    return folder, time.monotonic() - started


def start(checkpoint, folder, rank=0, size=1, port=0, flags=FLAGS):
    """The program in a process of its own, as torchrun starts it: all that it prints goes to ``folder/output``."""
    pid = os.fork()
    if pid:
        return pid
    member_of_team(rank, size, port)
    code = 1
    try:
        sys.stdout = sys.stderr = open(folder / "output", "a", buffering=1)  # noqa: SIM115
        argv = ["--checkpoint", str(checkpoint), "--log-dir", str(folder), "--mark", "run", *flags]
        run_program(lambda: eval_autoattack.main(argv))
        code = 0
    except SystemExit as exit_:
        code = exit_.code
    finally:
        os._exit(code)


def member_of_team(rank, size, port):
    """The environment that torchrun makes, which keeps the store itself."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="localhost", MASTER_PORT=str(port),
        TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip


@contextmanager
def team(checkpoint, folder, size, flags=FLAGS):
    """So many processes; -> their ids."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    yield [start(checkpoint, folder, rank, size, store.port, flags) for rank in range(size)]
    del store


def status(pid):
    """The exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def figures(folder):
    def without(value):
        if isinstance(value, dict):
            return {key: without(of) for key, of in value.items() if key not in MAY_DIFFER}
        return [without(of) for of in value] if isinstance(value, list) else value

    return without(json.loads((folder / "run/autoattack.json").read_text()))


def assert_same_report(folder, alone):
    assert figures(folder) == figures(alone)
    ours, theirs = (np.load(of / "run/autoattack.npz") for of in (folder, alone))
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert (folder / "run/adversarial.png").read_bytes() == (alone / "run/adversarial.png").read_bytes()
    assert not [path for path in (folder / "run").iterdir() if "state" in path.name or "lock" in path.name]


def finished_steps(folder):
    """Of all jobs, in whichever file they are."""
    progress = [np.load(path)["progress"] for path in (folder / "run").glob("autoattack.state*.npz")]
    return np.max(progress, axis=0) if progress else np.zeros((2, 3), int)


def test_killed_at_random_moments_nothing_finished_is_lost(checkpoint, alone, tmp_path):
    folder, seconds = alone
    moments, before = random.Random(), finished_steps(tmp_path)
    for _ in range(4):
        pid = start(checkpoint, tmp_path)
        time.sleep(moments.uniform(0.1, 0.6) * seconds)
        os.kill(pid, signal.SIGKILL)
        if status(pid) == 0:
            break
        assert (finished_steps(tmp_path) >= before).all()
        before = finished_steps(tmp_path)
    assert status(start(checkpoint, tmp_path)) == 0, (tmp_path / "output").read_text()
    assert_same_report(tmp_path, folder)


def test_processes_killed_and_ended_and_then_others_go_on(checkpoint, alone, tmp_path):
    """Three processes, of which one is killed; two; one. Whatever ends one ends all, with one line."""
    folder, seconds = alone
    moments, before = random.Random(), finished_steps(tmp_path)
    for size in (3, 2):
        with team(checkpoint, tmp_path, size) as pids:
            wait_until(lambda before=before: (finished_steps(tmp_path) != before).any())
            time.sleep(moments.uniform(0, 0.15) * seconds)
            victim = pids.pop(moments.randrange(size))
            os.kill(victim, signal.SIGKILL)
            for pid in pids:  # as torchrun does
                os.kill(pid, signal.SIGTERM)
            assert status(victim) == -signal.SIGKILL
            assert {status(pid) for pid in pids} == {143}
        output = (tmp_path / "output").read_text()
        assert "Traceback" not in output and output.count("stopped: finished attacks are kept") == 4 - size
        assert (finished_steps(tmp_path) >= before).all()
        before = finished_steps(tmp_path)
    (tmp_path / "output").unlink()
    with team(checkpoint, tmp_path, 2) as pids:
        wait_until(lambda: (tmp_path / "output").exists() and "AutoAttack" in (tmp_path / "output").read_text())
    assert [status(pid) for pid in pids] == [1, 1]  # torchrun was killed, and with it the store
    assert "error: torchrun is gone: the same command goes on" in (output := (tmp_path / "output").read_text())
    assert "Traceback" not in output
    assert status(start(checkpoint, tmp_path)) == 0, (tmp_path / "output").read_text()
    assert_same_report(tmp_path, folder)


def test_an_error_is_told_once(checkpoint, tmp_path):
    """Also where one process alone meets it: rank 0 reads what others left."""
    with team("none.pt", tmp_path, 3) as pids:
        assert [status(pid) for pid in pids] == [1, 1, 1]
    assert (tmp_path / "output").read_text() == "error: no checkpoint at none.pt: check the path\n"
    (tmp_path / "output").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/autoattack.state-1.npz").write_bytes(b"torn")
    with team(checkpoint, tmp_path, 2) as pids:
        assert [status(pid) for pid in pids] == [1, 1]
    output = (tmp_path / "output").read_text()
    assert output.startswith(f"error: {tmp_path}/run/autoattack.state-1.npz is damaged") and output.count("\n") == 1
    assert (tmp_path / "run/autoattack.state-1.npz").read_bytes() == b"torn"


def test_idle_processes_are_told_of(checkpoint, tmp_path):
    flags = ("--version", "custom", "--attacks", "apgd-ce", "--n-examples", "2", "--epsilon", "0.02", "--device", "cpu")
    with team(checkpoint, tmp_path, 3, flags) as pids:
        assert [status(pid) for pid in pids] == [0, 0, 0]
    output = (tmp_path / "output").read_text()
    assert "2 of 3 processes have nothing to do, there are too few chunks: pass a smaller --batch-size" in output
    assert output.count("apgd-ce ") == 1 + output.count("after apgd-ce ")  # one table


def test_through_torchrun_and_the_slurm_script(checkpoint, alone, tmp_path):
    """On one machine with two processes; srun and scontrol are stand-ins."""
    for name, text in (("srun", 'shift; exec "$@"'), ("scontrol", "echo localhost")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SUBMIT_DIR": str(ROOT), "JOB_NODELIST": "node[1-2]", "JOB_NUM_NODES": "1", "GPUS_ON_NODE": "2"}
    env = os.environ | {f"SLURM_{name}": value for name, value in slurm.items()}
    env |= {"SLURM_JOB_ID": str(os.getpid()), "PYTHON": sys.executable, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    flags = ["--checkpoint", str(checkpoint), "--log-dir", str(tmp_path), "--mark", "run", *FLAGS]
    done = subprocess.run(
        ["bash", str(ROOT / "sh/eval_autoattack_slurm.sh"), *flags], env=env, cwd="/", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same_report(tmp_path, alone[0])
    report = json.loads((tmp_path / "run/autoattack.json").read_text())
    assert report["processes"] == 2
    assert report["command"].startswith("torchrun --nproc-per-node=2 eval_autoattack.py --checkpoint ")
    assert done.stdout.splitlines()[-1].startswith("clean ") and done.stdout.count("clean ") == 2


def test_messages_longer_than_the_store_takes():
    """Two processes tell each other 9 MB."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    value = np.random.default_rng(0).random(9 << 17)

    def member(rank):
        member_of_team(rank, 2, store.port)
        of_all, of_first = (member := Team.join()).gather(value + rank), member.broadcast(value - rank)
        assert np.array_equal(of_first, value)
        assert len(of_all) == (0 if rank else 2) and all(np.array_equal(of, value + i) for i, of in enumerate(of_all))

    pids = []
    for rank in range(2):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                member(rank)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert [status(pid) for pid in pids] == [0, 0]


def test_alone_a_team_needs_no_store():
    alone = Team()
    assert list(alone.share([(0, 1), (0, 2)])) == [(0, 1), (0, 2)]
    assert alone.gather(3) == [3] and alone.broadcast(4) == 4 and alone.device("auto") == "auto"
    assert alone.first_to_end() and not alone.first_to_end()
