"""Files on disk: atomic writes, checksums, and locks."""

import hashlib
import json
import os
import re
import secrets
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import torch

from utils.errors import UserError

LARGEST_JSON = 64 << 20  # bytes; a report of 1,000 classes has less than 1 MB


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file that is either the old or the whole new one, also on a full disk, a kill or a power failure.

    The temporary file has a name of its own, which no other process can have prepared. What a killed process left of
    the same file is removed.

    Raises:
        UserError: the file cannot be written, or what is there is no regular file.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError("it is there and is no regular file")
        _remove_stale(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        raise UserError(f"could not write {path} ({error}): free space or choose another folder") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    """Remove temporary files of this path whose process has ended; a process writes one file at a time."""
    for name in os.listdir(path.parent):
        if name.startswith(path.name) and (
            match := re.fullmatch(r"(?:\.(\d+)-[0-9a-f]{8})?\.tmp", name[len(path.name) :])
        ):
            if match[1] and int(match[1]) != os.getpid() and _is_running(int(match[1])):
                continue
            with suppress(OSError):
                (path.parent / name).unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass  # it is another user's
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder outlast a power failure, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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


def set_aside(folder: Path, last: str) -> Path | None:
    """Move the files of an earlier run to ``earlier-DATE`` in their folder, but for locks and checkpoints.

    Args:
        last: the file that says whether there is one, moved last; an empty one does not count.

    Returns:
        Where they are now; None if there were none.
    """
    sign = folder / last
    if not sign.is_file() or not sign.stat().st_size:
        return None
    kept = folder / f"earlier-{datetime.fromtimestamp(sign.stat().st_mtime):%Y%m%d%H%M%S}"
    kept.mkdir(exist_ok=True)
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in (".lock", ".pt")]
    for path in sorted(files, key=lambda path: path.name == last):
        path.replace(kept / path.name)
    return kept


def identity(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a file is written anew; None if there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def add_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a JSON object with the CRC-32 of all of it as its last key, ``crc32``."""
    return {**content, "crc32": f"{zlib.crc32(json.dumps(content).encode()):08x}"}


def remove_checksum(content: dict[str, Any]) -> dict[str, Any]:
    """The content without ``crc32``, which files of earlier versions do not have.

    Raises:
        ValueError: the checksum is wrong, or its name is.
    """
    if "crc32" not in content:
        if content and re.fullmatch("[0-9a-f]{8}", str(list(content.values())[-1])):
            raise ValueError("the name of its checksum is damaged")
        return content
    rest = {key: value for key, value in content.items() if key != "crc32"}
    if add_checksum(rest)["crc32"] != content["crc32"]:
        raise ValueError("its checksum is wrong")
    return rest


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of metrics.jsonl but for torn and damaged ones, each epoch once, in order."""
    entries = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
            if isinstance(entry, dict) and type(entry.get("epoch")) is int:
                entries[entry["epoch"]] = remove_checksum(entry)
        except (ValueError, RecursionError):
            continue
    return [entries[epoch] for epoch in sorted(entries)]


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError, RecursionError: it is no JSON, or larger than 64 MiB.
    """
    if path.exists() and not path.is_file():  # a FIFO would wait for ever, a device never end
        raise OSError("it is no regular file")
    with open(path, "rb") as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON >> 20} MiB")
    return json.loads(content)


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let one process after another run this, by a lock on the file at path, which stays; where the file system
    cannot lock it they run it at once."""
    lock = filelock.FileLock(path)
    with suppress(OSError, NotImplementedError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
