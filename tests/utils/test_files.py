"""The lock on a run's folder lets one process in, whatever the order of starts and ends."""

import fcntl
import os

import filelock
import pytest

from utils.errors import UserError
from utils.files import lock_folder


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
