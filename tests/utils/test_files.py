"""Files are whole or not there; a run's folder lets one process in, whatever the order of starts and ends."""

import fcntl
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from tests.helpers import ROOT
from utils.errors import UserError
from utils.files import add_checksum, lock_folder, read_json, remove_checksum, set_aside, write_atomically


def is_free(folder, name="evaluation"):
    """As another process sees it."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            with lock_folder(folder, name):
                status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_one_process_of_a_name(tmp_path):
    with lock_folder(tmp_path, "evaluation"):
        assert not is_free(tmp_path) and is_free(tmp_path, "training")
        sentence = f"another evaluation is running in {tmp_path}: wait for it, or use another --mark"
        with pytest.raises(UserError, match=sentence), lock_folder(tmp_path, "evaluation"):
            pass
        assert not is_free(tmp_path)  # the one that was refused released nothing
    assert is_free(tmp_path)


def test_no_second_process_after_the_first_one_ends(tmp_path):
    """A holds the lock, B has opened the file, A ends, B locks it, C comes: a file that A deletes lets in B and C."""
    with lock_folder(tmp_path, "evaluation"):
        b = os.open(tmp_path / "evaluation.lock", os.O_RDWR)
    fcntl.flock(b, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not is_free(tmp_path)
    os.close(b)
    assert is_free(tmp_path)


def test_a_lock_ends_with_its_process(tmp_path):
    if (pid := os.fork()) == 0:
        with lock_folder(tmp_path, "evaluation"):
            os._exit(0)
    os.waitpid(pid, 0)
    assert is_free(tmp_path)


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("use SoftFileLock")])
def test_a_file_system_without_locks_gives_a_notice(tmp_path, monkeypatch, capsys, error):
    def unlockable(self):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", unlockable)
    with lock_folder(tmp_path, "training"):
        pass
    assert capsys.readouterr().err == (
        f"notice: cannot lock {tmp_path} ({error}): do not start a second training with this --mark\n"
    )


def test_what_a_killed_process_left_is_removed_and_a_running_one_keeps_its_own(tmp_path):
    path = tmp_path / "file"
    gone = subprocess.Popen(["true"])
    gone.wait()
    kept = [f"file.{os.getppid()}-00000000.tmp", "file.x.tmp", "other.tmp"]
    for name in ("file.tmp", f"file.{gone.pid}-01234567.tmp", f"file.{os.getpid()}-89abcdef.tmp", *kept):
        (tmp_path / name).write_text("half")
    write_atomically(path, lambda file: file.write(b"whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["file", *kept])
    assert path.read_bytes() == b"whole"


def test_a_prepared_temporary_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.token_hex", lambda n: "00000000")
    target = tmp_path / "target"
    target.write_text("precious")
    other = tmp_path / f"file.{os.getpid()}-00000000.tmp"
    monkeypatch.setattr("utils.files._remove_stale", lambda path: other.symlink_to(target))
    with pytest.raises(UserError, match="could not write"):
        write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
    assert target.read_text() == "precious"


def test_only_a_regular_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/full"), tmp_path):
        with pytest.raises(UserError, match="is no regular file"):
            write_atomically(path, lambda file: file.write(b"x"))
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode) and stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_checksum_notices_every_change():
    content = {"a": 1.5, "b": ["ü", None, float("inf")], "c": {"d": "\udcff"}}
    text = json.dumps(add_checksum(content))
    assert remove_checksum(json.loads(text)) == content == remove_checksum(content)
    for changed in (text.replace("1.5", "1.25"), text.replace('"c"', '"x"'), text.replace("null", "0")):
        with pytest.raises(ValueError, match="its checksum is wrong"):
            remove_checksum(json.loads(changed))


def test_no_flipped_bit_of_a_line_is_accepted_with_other_content():
    content = {"epoch": 1, "loss": 2.25, "split": "validation"}
    text, accepted = json.dumps(add_checksum(content)).encode(), 0
    for bit in range(8 * len(text)):
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            assert remove_checksum(json.loads(changed)) == content
            accepted += 1  # white space between values
        except ValueError:
            pass
    assert accepted < 0.02 * 8 * len(text)


@pytest.mark.parametrize("device", ["/dev/full", "closed pipe"])
def test_standard_output_that_cannot_be_written(device):
    code = "from utils.errors import run_program; run_program(lambda: print('x' * 100))"
    command = [sys.executable, "-c", code]
    if device == "/dev/full":
        with open(device, "w") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "standard output" in done.stderr
    else:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, "")


def test_what_an_earlier_run_left_is_moved_aside(tmp_path):
    assert set_aside(tmp_path, "metrics.jsonl") is None
    for name in ("metrics.jsonl", "train.log", "training.lock", "last.pt"):
        (tmp_path / name).write_text("" if name == "metrics.jsonl" else name)
    assert set_aside(tmp_path, "metrics.jsonl") is None  # nothing was measured
    (tmp_path / "metrics.jsonl").write_text("{}")
    os.utime(tmp_path / "metrics.jsonl", (0, 1_700_000_000))
    kept = set_aside(tmp_path, "metrics.jsonl")
    assert kept.name.startswith("earlier-2023111") and sorted(os.listdir(kept)) == ["metrics.jsonl", "train.log"]
    assert sorted(os.listdir(tmp_path)) == [kept.name, "last.pt", "training.lock"]


def test_json_is_read_from_regular_files_of_bounded_size(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text('{"a": [1]}')
    assert read_json(tmp_path / "a.json") == {"a": [1]}
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="it is no regular file"):
            read_json(path)
    monkeypatch.setattr("utils.files.LARGEST_JSON", 9)
    with pytest.raises(ValueError, match="it is larger than"):
        read_json(tmp_path / "a.json")


def test_a_sign_that_the_output_lacks_is_written_as_an_escape():
    code = "from utils.errors import run_program; run_program(lambda: print('79 \u00b19'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "79 \\xb19\n", "")
