"""Read and check ``autoattack.json``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import read_json, remove_checksum

HINT = "pass the autoattack.json of an evaluation"


def _number(low: float, high: float) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _texts(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(isinstance(text, str) for text in value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _curve(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(_wrong(point, POINT) is None for point in value)


PERCENT, EPSILON = _number(0, 100), _number(0, 1e6)
POINT = {"epsilon": EPSILON, "clean_accuracy": PERCENT, "robust_accuracy": PERCENT}
NEEDED = {
    "model": _text,
    "dataset": _text,
    "data_sha256": _text,
    "n": lambda value: isinstance(value, int) and _number(1, 10**12)(value),
    "norm": _text,
    "epsilon_text": _text,
    "version": _text,
    "attacks": _texts,
    "clean_accuracy": PERCENT,
    "robust_accuracy": PERCENT,
}


def read_report(path: Path) -> dict[str, Any]:
    """Return the contents of an ``autoattack.json``, of which all that a comparison needs is checked.

    Raises:
        UserError: the file is missing, is not a regular file, or is not such a report.
    """
    try:
        report = read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): {HINT}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a report of eval_autoattack.py (not JSON: {error}): {HINT}") from error
    try:
        report = remove_checksum(report) if isinstance(report, dict) else report
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again, or repeat the evaluation") from error
    wrong = _wrong(report, NEEDED) or ("curve" if "curve" in report and not _curve(report["curve"]) else None)
    if wrong:
        raise UserError(f"{path} is not a report of eval_autoattack.py ({wrong} is missing or invalid): {HINT}")
    return report


def _wrong(content: Any, needed: dict[str, Callable[[Any], bool]]) -> str | None:
    """Return the name of the first key that is missing or invalid."""
    if not isinstance(content, dict):
        return "a JSON object"
    return next((key for key, fits in needed.items() if not fits(content.get(key))), None)
