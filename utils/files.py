"""Files on disk: atomic writes and hashes."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

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
