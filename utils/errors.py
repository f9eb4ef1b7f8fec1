"""The one exception that the programs turn into a single sentence and a non-zero exit."""

import io
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """An error that the user can fix; its message is one sentence: what is wrong, and what to do."""


def first_line(error: Exception) -> str:
    """What an error says first, or the name of its type."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def fail(message: object) -> NoReturn:
    """Print the sentence on standard error and exit with status 1."""
    flush_output()
    with suppress(OSError):  # a standard error that cannot be written: the status tells
        print("error:", " ".join(str(message).split()), file=sys.stderr, flush=True)
    raise SystemExit(1)


def flush_output() -> OSError | None:
    """Flush standard output; where that fails, discard it, so that Python does not report it once more at exit.

    Returns:
        The error, or None.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def ensure_writable(folder: Path, option: str) -> None:
    """Create the folder if it is missing and write a file in it, so that a long run does not fail at its end.

    Raises:
        UserError: it cannot be written; the sentence names the flag that chooses another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another folder with {option}") from error


def run_program(main: Callable[[], None]) -> None:
    """Call a program's main; a UserError, a full or unwritable disk or Ctrl-C ends without a traceback.

    What the output's encoding lacks, such as the ± of a result in ASCII, is written as an escape.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        if error := flush_output():
            raise error
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # the shell's status of Ctrl-C
    except BrokenPipeError:
        flush_output()
        raise SystemExit(141) from None  # the shell's status of a closed pipe, as of | head -1
    except OSError as error:
        where = error.filename or "standard output or a file of this run"
        fail(f"{error.strerror or error}: {where}; free space or choose another folder")
