"""The suite's log and warnings: autoattack.log, standard error, and the report."""

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.autoattack.suite import LOGGER


class _Warnings(logging.Handler):
    """Pass the suite's warnings to ``warn``, and print the first of each kind on standard error if ``shows``."""

    def __init__(self, warn: Callable[[str], None], shows: bool) -> None:
        super().__init__(logging.WARNING)
        self.warn, self.shows, self.seen = warn, shows, set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.warn(message)
        if self.shows and _kind(message) not in self.seen:
            self.seen.add(_kind(message))
            tqdm.write(f"warning: {message}", file=sys.stderr)  # above the progress bar


@contextmanager
def suite_log(path: Path | None, resumed: bool, warn: Callable[[str], None]) -> Iterator[None]:
    """Log the suite's lines and ours in a file; a new evaluation starts a new file.

    Args:
        path: None in a process that neither logs nor prints.
        warn: called with each warning of the suite.
    """
    handlers: list[logging.Handler] = [_Warnings(warn, shows=path is not None)]
    if path:
        if not resumed:
            path.unlink(missing_ok=True)
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        file.handleError = lambda record: None  # a full disk ends the evaluation when it saves its state
        handlers.append(file)
    level, propagate, show = LOGGER.level, LOGGER.propagate, warnings.showwarning

    def log_suites(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> None:
        if category is Warning:  # the suite's checks warn so; libraries use subclasses
            LOGGER.warning(str(message))
        else:
            show(message, category, *where, **line)

    for handler in handlers:
        LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.showwarning = log_suites
            yield
    finally:
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate
        for handler in handlers:
            LOGGER.removeHandler(handler)
            with suppress(OSError):  # a full disk
                handler.close()


def of_each_kind(messages: Iterable[str]) -> list[str]:
    """The first of the suite's warnings of each kind."""
    first: dict[str, str] = {}
    for message in messages:
        first.setdefault(_kind(message), str(message))
    return list(first.values())


def _kind(warning: str) -> str:
    """The same text for warnings that differ in their numbers only."""
    return re.sub(r"[\d.]+", "#", warning)
