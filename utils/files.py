"""Files on disk: atomic writes, hashes, and a lock on a run's folder."""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import torch

from utils.errors import UserError


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is either the old or the whole new one, also on a full disk or a kill.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"could not write {path} ({error}): free space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_atomically(obj: Any, path: Path) -> None:
    """torch.save by ``write_atomically``.

    Raises:
        UserError: the file cannot be written.
    """
    write_atomically(path, lambda file: torch.save(obj, file))


def file_hash(path: str | Path) -> str:
    """SHA-256 of the file, hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def lock_folder(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a run's folder; it ends with the process, however that ends.

    The file ``FOLDER/NAME.lock`` stays: deleting it would let two processes hold locks on two files of one name.
    On a file system without locks a notice is printed and nothing is locked.

    Args:
        folder: is there and can be written.
        name: what runs in it, ``evaluation`` or ``training``.

    Raises:
        UserError: another process holds the lock.
    """
    lock = filelock.FileLock(folder / f"{name}.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UserError(f"another {name} is running in {folder}: wait for it, or use another --mark") from None
    except (OSError, NotImplementedError) as error:
        notice = f"cannot lock {folder} ({error}): do not start a second {name} with this --mark"
        print(f"notice: {notice}", file=sys.stderr)
    try:
        yield
    finally:
        lock.release()
