"""The one exception that the programs turn into a single sentence and a non-zero exit."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something that the user can mend; the message says what and how, in one sentence."""


def fail(message: object) -> NoReturn:
    """Print the sentence on standard error and exit with status 1."""
    print("error:", " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(1)


def run_program(main: Callable[[], None]) -> None:
    """Call a program's main; a UserError or a full or unwritable disk ends in one sentence instead of a traceback."""
    try:
        main()
    except UserError as error:
        fail(error)
    except OSError as error:
        fail(
            f"{error.strerror or error}: {error.filename or 'a file of this run'}; free space or choose another folder"
        )
