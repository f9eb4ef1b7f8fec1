"""Several processes, and processes killed at any moment, leave the report of one that was left alone."""

import json
import os
import pickle
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
from benchmarks.processes import Store, fork, status, together, wait_until
from engine.train_state import FORMAT
from evaluation.results import PerImageResults
from tests.helpers import ROOT, trained
from utils import distributed
from utils.distributed import ProcessGroup
from utils.errors import UserError

# Image 5 breaks at half of this epsilon and no other below 1.5 times it, so no rounding changes a verdict.
FLAGS = (
    "--version", "custom", "--attacks", "apgd-ce,apgd-dlr", "--n-examples", "6", "--batch-size", "2", "--device", "cpu",
    "--epsilon", "0.03", "--epsilons", "0",
)  # fmt: skip
# crc32 is the checksum of the whole file, times included
MAY_DIFFER = {"seconds", "throughput", "processes", "command", "date", "hardware", "commit", "dirty", "crc32"}


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
    assert {"", "apgd-ce"} <= found  # else the comparisons would show little
    return folder, time.monotonic() - started


def start(checkpoint, folder, rank=0, size=1, port=0, flags=FLAGS):
    """The program in a process of its own, as torchrun starts it: all that it prints goes to ``folder/output``."""
    argv = ["--checkpoint", str(checkpoint), "--log-dir", str(folder), "--mark", "run", *flags]
    return fork(lambda: eval_autoattack.main(argv), folder / "output", rank, size, port)


@contextmanager
def processes(checkpoint, folder, size, flags=FLAGS):
    """So many processes on one evaluation; -> their ids."""
    store = Store()
    yield [start(checkpoint, folder, rank, size, store.port, flags) for rank in range(size)]
    del store


def figures(folder):
    def without(value):
        if isinstance(value, dict):
            return {key: without(entry) for key, entry in value.items() if key not in MAY_DIFFER}
        return [without(entry) for entry in value] if isinstance(value, list) else value

    return without(json.loads((folder / "run/autoattack.json").read_text()))


def assert_same_report(folder, alone):
    assert figures(folder) == figures(alone)
    ours, theirs = (np.load(path / "run/autoattack.npz") for path in (folder, alone))
    for name in theirs.files:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert (folder / "run/adversarial.png").read_bytes() == (alone / "run/adversarial.png").read_bytes()
    assert not [path for path in (folder / "run").iterdir() if "state" in path.name or "tmp" in path.name]


def finished_steps(folder):
    """Of all jobs, in whichever file they are."""
    progress = [np.load(path)["progress"] for path in (folder / "run").glob("autoattack.state*.npz")]
    return np.max(progress, axis=0) if progress else np.zeros((2, 3), int)


def test_killed_at_random_moments_nothing_finished_is_lost(checkpoint, alone, tmp_path):
    folder, seconds = alone
    moments, before = random.Random(0), finished_steps(tmp_path)
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


def test_processes_killed_and_ended_and_then_others_resume(checkpoint, alone, tmp_path):
    """Three processes, of which one is killed; two; one. Whatever ends one ends all, with one line."""
    folder, seconds = alone
    moments, before = random.Random(0), finished_steps(tmp_path)
    for size in (3, 2):
        with processes(checkpoint, tmp_path, size) as pids:
            wait_until(lambda before=before: (finished_steps(tmp_path) != before).any())
            time.sleep(moments.uniform(0, 0.15) * seconds)
            victim = pids.pop(moments.randrange(size))
            os.kill(victim, signal.SIGKILL)
            for pid in pids:  # as torchrun does
                os.kill(pid, signal.SIGTERM)
            assert status(victim) == -signal.SIGKILL
            assert {status(pid) for pid in pids} == {143}
        output = (tmp_path / "output").read_text()
        assert "Traceback" not in output and output.count("interrupted: rerun") == 4 - size
        assert (finished_steps(tmp_path) >= before).all()
        before = finished_steps(tmp_path)
    (tmp_path / "output").unlink()
    with processes(checkpoint, tmp_path, 2) as pids:
        wait_until(lambda: (tmp_path / "output").exists() and "AutoAttack" in (tmp_path / "output").read_text())
    assert [status(pid) for pid in pids] == [1, 1]  # torchrun was killed, and with it the store
    output = (tmp_path / "output").read_text()
    assert "error: lost contact with torchrun or with another process: rerun the same command to resume" in output
    assert "Traceback" not in output
    assert status(start(checkpoint, tmp_path)) == 0, (tmp_path / "output").read_text()
    assert_same_report(tmp_path, folder)


def test_an_error_is_printed_once(checkpoint, tmp_path):
    """Also where one process alone finds it: rank 0 reads the states of all."""
    with processes("none.pt", tmp_path, 3) as pids:
        assert [status(pid) for pid in pids] == [1, 1, 1]
    assert (tmp_path / "output").read_text() == "error: no checkpoint at none.pt: check the path\n"
    (tmp_path / "output").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/autoattack.state-1.npz").write_bytes(b"torn")
    with processes(checkpoint, tmp_path, 2) as pids:
        assert [status(pid) for pid in pids] == [1, 1]
    output = (tmp_path / "output").read_text()
    assert output.startswith(f"error: {tmp_path}/run/autoattack.state-1.npz is damaged") and output.count("\n") == 1
    assert (tmp_path / "run/autoattack.state-1.npz").read_bytes() == b"torn"


def test_idle_processes_give_a_notice(checkpoint, tmp_path):
    flags = ("--version", "custom", "--attacks", "apgd-ce", "--n-examples", "2", "--epsilon", "0.02", "--device", "cpu")
    with processes(checkpoint, tmp_path, 3, flags) as pids:
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
    assert done.stdout.splitlines()[-1].startswith("clean ") and done.stdout.count("| attack ") == 1


def test_other_files_in_one_process_are_refused(checkpoint, tmp_path):
    """The hash of each process is of the bytes that it loaded."""
    content = torch.load(checkpoint, weights_only=True)
    content["student"]["fc.bias"] += 1
    torch.save(content, tmp_path / "other.pt")
    store = Store()
    files = (checkpoint, tmp_path / "other.pt")
    pids = [start(file, tmp_path, rank, 2, store.port) for rank, file in enumerate(files)]
    assert [status(pid) for pid in pids] == [1, 1]
    output = (tmp_path / "output").read_text()
    assert output.startswith("error: process 1 has other files or settings (checkpoint_sha256 ")
    assert output.count("\n") == 1


def test_messages_of_any_length(tmp_path):
    value = np.random.default_rng(0).bytes(9 << 20)

    def main(group):
        gathered = group.gather_bytes(value * group.rank)
        assert gathered == ([b"", value, 2 * value] if group.is_main else [])
        assert group.broadcast_bytes(value if group.is_main else b"") == value
        assert group.broadcast_bytes(b"") == b""
        gathered = group.gather({"rank": group.rank, "text": "\u00e9"})
        assert [entry["rank"] for entry in gathered] == ([0, 1, 2] if group.is_main else [])
        assert group.broadcast([None, 1.5, group.rank]) == [None, 1.5, 0]
        group.barrier()

    assert together(main, tmp_path, 3) == ([0, 0, 0], "")


def test_each_job_is_taken_once(tmp_path):
    def main(group):
        taken = group.gather(list(group.next_jobs(range(100, 150))))
        if group.is_main:
            assert sorted(job for jobs in taken for job in jobs) == list(range(100, 150))

    assert together(main, tmp_path, 3) == ([0, 0, 0], "")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_that_arrives_is_unpickled(tmp_path):
    """A hostile process fills every key of the store that it finds with pickles, and messages are pickles too."""
    trap, store = pickle.dumps(Trap(tmp_path / "trap")), Store()

    def hostile():
        client = TCPStore("localhost", store.port, is_master=False)
        for key in ("1 of 1", "1", "2", "jobs", "message 1", "messages of 1"):  # also those of an earlier version
            for prefix in ("", "lbgat/"):
                client.set(f"{prefix}{key}: 0", trap)
                client.set(f"{prefix}{key} of 1", str(len(trap)))
        for key in ("default_pg/0/0", "lbgat/extra"):
            client.set(key, trap)

    assert status(fork(hostile, tmp_path / "output")) == 0

    def main(group):
        for receive in (
            lambda: group.gather_bytes(trap)[1:],
            lambda: [group.broadcast_bytes(trap)],
        ):
            for data in receive():
                assert data == trap
                for read in (json.loads, lambda data: PerImageResults.load(data, {}, None, "the state")):
                    with pytest.raises((ValueError, UserError)):
                        read(data)

    together(main, tmp_path, store=store)
    assert not (tmp_path / "trap").exists()
    np.savez(tmp_path / "objects.npz", fingerprint=np.array([Trap(tmp_path / "trap")], dtype=object))
    with pytest.raises(UserError):
        PerImageResults.load((tmp_path / "objects.npz").read_bytes(), {}, None, "the state")
    assert not (tmp_path / "trap").exists()


def test_no_module_unpickles_what_comes_from_others():
    for path in ("utils/distributed.py", "evaluation/results.py", "evaluation/resume.py"):
        text = (ROOT / path).read_text()
        assert "import pickle" not in text and "_object" not in text and "allow_pickle=True" not in text


def test_a_late_process_is_named_and_waiting_can_be_interrupted(tmp_path, monkeypatch):
    """Process 1 stops; process 0 says so once and ends within seconds of SIGTERM."""
    monkeypatch.setattr(distributed, "NOTICE_SECONDS", 0.5)
    store, output = Store(), tmp_path / "output"

    def main():
        group = ProcessGroup.init()
        with distributed.exit_cleanly(group):
            if group.rank == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            group.barrier()

    pids = [fork(main, output, rank, 2, store.port) for rank in range(2)]
    wait_until(lambda: output.exists() and "waiting" in output.read_text())
    time.sleep(0.5)
    assert output.read_text() == "process 0 is waiting for process 1\n"
    os.kill(pids[0], signal.SIGTERM)
    began = time.monotonic()
    assert status(pids[0]) == 143 and time.monotonic() - began < 10
    assert output.read_text().splitlines()[1:] == ["interrupted: rerun the same command to resume from what is saved"]
    os.kill(pids[1], signal.SIGKILL)
    assert status(pids[1]) == -signal.SIGKILL


def test_a_failure_ends_all(tmp_path):
    """The others wait for a process that has failed: one sentence, and nobody hangs."""

    def main(group):
        with distributed.exit_cleanly(group):
            if group.rank == 1:
                raise UserError("process 1 has no disk")
            group.barrier()

    assert together(main, tmp_path, 3) == ([1, 1, 1], "error: process 1 has no disk\n")


@pytest.mark.parametrize(
    "variables",
    [{"WORLD_SIZE": "x"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "9" * 5000},
     {"WORLD_SIZE": "2", "RANK": "x"}, {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": ""}],
)  # fmt: skip
def test_a_damaged_environment_is_one_sentence(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="in the environment is no number: unset it, or start with torchrun"):
        ProcessGroup.init()


def test_an_environment_without_torchrun_is_one_sentence(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but no torchrun answers: unset it"):
        ProcessGroup.init()


def test_one_process_needs_no_store():
    alone = ProcessGroup()
    assert list(alone.next_jobs([(0, 1), (0, 2)])) == [(0, 1), (0, 2)]
    assert alone.gather(3) == [3] and alone.broadcast(4) == 4 and alone.gather_bytes(b"5") == [b"5"]
    alone.barrier(), alone.check()
    assert alone.is_main and alone.device("auto") == "auto"
    assert alone.is_first_to_end() and not alone.is_first_to_end()
