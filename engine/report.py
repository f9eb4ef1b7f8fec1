"""What an AutoAttack evaluation leaves in its log folder, and prints."""

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datasets import Dataset
from engine.checkpoint import write_atomically
from engine.outcomes import Outcomes
from engine.suite import LOGGER, Suite

FILES = ("autoattack.json", "autoattack.npz", "autoattack.log", "adversarial.png")
UNITS = "accuracies in percent of the n images, seconds of wall time, epsilon in pixels of [0, 1]"


def format_epsilon(epsilon: float) -> str:
    """The inverse of parse_epsilon: ``0.031``, or ``8/255`` where decimals would be endless."""
    decimal = f"{epsilon:g}"
    pixels = round(255 * epsilon)
    return f"{pixels}/255" if float(decimal) != epsilon and pixels / 255 == epsilon else decimal


def package_versions(suite: Suite) -> dict[str, str]:
    """Versions of everything that a verdict may depend on."""
    versions = {"python": platform.python_version()}
    for name in ("torch", "torchvision", "numpy", suite.package.__name__):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            module = suite.package if name == suite.package.__name__ else None
            versions[name] = getattr(module, "__version__", "unknown" if module else "not installed")
    return versions


def fingerprint(suite: Suite, checkpoint_sha256: str, model: str, data: Dataset, n: int) -> dict[str, Any]:
    """Everything that the verdicts depend on: an evaluation goes on only where all of it is the same."""
    pixels = np.ascontiguousarray(data.x_test[:n])
    return {
        "checkpoint_sha256": checkpoint_sha256,
        "model": model,
        "num_classes": data.num_classes,
        "dataset": data.name,
        "split": "test",
        "n": n,
        "data_sha256": hashlib.sha256(pixels.tobytes() + data.y_test[:n].astype(np.int64).tobytes()).hexdigest(),
        "norm": suite.norm,
        "epsilon": suite.epsilon,
        "version": suite.version,
        "attacks": list(suite.attacks),
        "seed": suite.seed,
        "batch_size": suite.batch_size,
        "versions": package_versions(suite),
    }


class _Console(logging.Handler):
    """The suite's warnings on standard error, above the progress bar, each once: every chunk repeats them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        kind = re.sub(r"[\d.]+", "#", message)
        if kind not in self.seen:
            self.seen.add(kind)
            tqdm.write(f"warning: {message}", file=sys.stderr)


@contextmanager
def suite_log(path: Path, resumed: bool) -> Iterator[None]:
    """Collect the suite's lines and ours in a file; a new evaluation starts a new one."""
    if not resumed:
        path.unlink(missing_ok=True)
    file = logging.FileHandler(path, mode="a", encoding="utf-8")  # the authors' package appends to it as well
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handlers, level, propagate = [file, _Console()], LOGGER.level, LOGGER.propagate
    for handler in handlers:
        LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    LOGGER.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            LOGGER.removeHandler(handler)
            handler.close()
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


def keep_earlier(folder: Path, fingerprint: dict[str, Any]) -> str | None:
    """Rename the report of another evaluation in this folder, so that hours of work are not overwritten.

    Returns:
        The new name of its JSON file, or None if there was nothing to keep.
    """
    report = folder / FILES[0]
    try:
        earlier = json.loads(report.read_text())
        if all(earlier.get(key) == value for key, value in fingerprint.items()):
            return None
        suffix = re.sub(r"\D", "", earlier["date"])[:14]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError):  # not written by us
        suffix = str(int(report.stat().st_mtime))
    for name in reversed(FILES):  # the JSON file last: a half-done renaming is done again
        path = folder / name
        if path.exists():
            path.replace(path.with_stem(f"{path.stem}-{suffix}"))
    return report.with_stem(f"{report.stem}-{suffix}").name


def write_report(folder: Path, report: dict[str, Any], outcomes: Outcomes, labels: np.ndarray) -> None:
    """``autoattack.npz`` and, once that is safe, ``autoattack.json``."""
    arrays = {
        "index": np.arange(len(labels)),
        "label": np.asarray(labels, np.int64),
        "clean_prediction": outcomes.clean_prediction,
        "adversarial_prediction": outcomes.adversarial_prediction,
        "robust": outcomes.robust,
        "broken_by": outcomes.broken_by,
    }
    write_atomically(folder / "autoattack.npz", lambda file: np.savez_compressed(file, **arrays))
    text = json.dumps(report, indent=2) + "\n"
    write_atomically(folder / "autoattack.json", lambda file: file.write(text.encode()))


def results(suite: Suite, outcomes: Outcomes) -> dict[str, Any]:
    """The measured part of ``autoattack.json``."""
    accuracies = outcomes.accuracies(suite.attacks)
    seconds = dict(zip(("clean", *suite.attacks), outcomes.seconds.sum(0).tolist(), strict=True))
    return {
        "units": UNITS,
        "clean_accuracy": accuracies["clean"],
        "accuracy_after": {name: accuracies[name] for name in suite.attacks},
        "robust_accuracy": accuracies[suite.attacks[-1]],
        "seconds": {**seconds, "total": sum(seconds.values())},
    }


def table(report: dict[str, Any]) -> str:
    """Accuracy and seconds after the clean pass and each attack."""
    rows = [("clean", report["clean_accuracy"]), *report["accuracy_after"].items()]
    lines = [f"{'after':<10} {'accuracy':>9} {'seconds':>9}"]
    lines += [f"{name:<10} {accuracy:>8.2f}% {report['seconds'][name]:>9.1f}" for name, accuracy in rows]
    return "\n".join(lines)


def last_line(report: dict[str, Any]) -> str:
    """``clean NN.NN%  robust NN.NN%  (AutoAttack, epsilon E, N images)``."""
    name = "AutoAttack"
    if report["version"] != "standard":
        name += f" {report['version']}: {','.join(report['attacks'])}"
    return (
        f"clean {report['clean_accuracy']:.2f}%  robust {report['robust_accuracy']:.2f}%  "
        f"({name}, epsilon {report['epsilon_text']}, {report['n']} images)"
    )


def draw(folder: Path, outcomes: Outcomes, data: Dataset) -> str:
    """Write ``adversarial.png`` if there is something to draw and to draw it with; returns one line about it."""
    path = folder / "adversarial.png"
    if importlib.util.find_spec("matplotlib") is None:
        return f"{path} is not drawn: matplotlib is not installed (pip install matplotlib)"
    index = outcomes.shown_index
    if len(index) == 0:
        return f"{path} is not drawn: no image was broken by an attack"
    from engine.plots import plot_triples

    names = [name.replace("_", " ") for name in data.class_names]
    x = np.transpose(data.x_test[index], (0, 3, 1, 2)) / np.float32(255)
    label, taken_for = ([names[i] for i in of[index]] for of in (data.y_test, outcomes.adversarial_prediction))
    write_atomically(
        path,
        lambda file: plot_triples(x, outcomes.shown_x_adv, label, taken_for, outcomes.broken_by[index].tolist(), file),
    )
    return f"picture: {path}"
