"""What the suite says: autoattack.log, and its warnings."""

import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from evaluation.autoattack.suite import LOGGER


def _kind(warning: str) -> str:
    """The same for warnings that differ in their figures alone."""
    return re.sub(r"[\d.]+", "#", warning)


class _Console(logging.Handler):
    """The suite's warnings on standard error, above the progress bar, each once: every chunk repeats them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if _kind(message) not in self.seen:
            self.seen.add(_kind(message))
            tqdm.write(f"warning: {message}", file=sys.stderr)


class _Warnings(logging.Handler):
    """Hands the suite's warnings on."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.warn = warn

    def emit(self, record: logging.LogRecord) -> None:
        self.warn(record.getMessage())


@contextmanager
def suite_log(path: Path | None, resumed: bool, warn: Callable[[str], None]) -> Iterator[None]:
    """Collect the suite's lines and ours in a file; a new evaluation starts a new one.

    Args:
        path: None in a process that neither logs nor prints.
        warn: called with each warning of the suite.
    """
    handlers: list[logging.Handler] = [_Warnings(warn)]
    if path:
        if not resumed:
            path.unlink(missing_ok=True)
        file = logging.FileHandler(path, mode="a", encoding="utf-8")  # the authors' package appends to it as well
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        handlers += [file, _Console()]
    level, propagate = LOGGER.level, LOGGER.propagate
    for handler in handlers:
        LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    show = warnings.showwarning

    def log_suites(message: Warning | str, category: type[Warning], *where: Any, **file: Any) -> None:
        if category is Warning:  # as the authors' package warns, which has no logger
            LOGGER.warning(str(message))
        else:
            show(message, category, *where, **file)

    try:
        with warnings.catch_warnings():
            warnings.showwarning = log_suites
            yield
    finally:
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


def of_each_kind(messages: Iterable[str]) -> list[str]:
    """The first of the suite's warnings of each kind."""
    found: dict[str, str] = {}
    for message in messages:
        found.setdefault(_kind(message), str(message))
    return list(found.values())
