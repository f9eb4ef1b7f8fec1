"""From per-image results to the accuracies of autoattack.json, its fingerprint, and the files that hold them."""

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import Dataset
from evaluation.autoattack.suite import Suite
from evaluation.results import NOT_WRITTEN_BEFORE, PerImageResults
from evaluation.target import LoadedModel
from utils.errors import UserError
from utils.files import add_checksum, read_json, write_atomically
from utils.options import format_epsilon
from utils.provenance import NOT_INSTALLED, versions
from utils.statistics import accuracy_interval

FILES = (
    "autoattack.json", "autoattack.npz", "autoattack.log", "report.html", "report.md", "adversarial.png",
    "classes.png", "curve.png",
)  # fmt: skip
UNITS = (
    "accuracies in percent of the n images (_95: 95% Wilson interval), seconds of wall time summed over the processes, "
    "throughput in images a second, epsilon in pixels of [0, 1]"
)


def package_versions(suite: Suite) -> dict[str, str]:
    """Return the versions of everything that a verdict may depend on."""
    package = suite.package.__name__
    found = versions("torch", "torchvision", "numpy", package)
    if found[package] == NOT_INSTALLED:  # imported from a folder
        found[package] = getattr(suite.package, "__version__", "unknown")
    return found


def fingerprint(
    suite: Suite, epsilons: tuple[float, ...], precision: str, target: LoadedModel, data: Dataset
) -> dict[str, Any]:
    """Return what the verdicts depend on, but for rounding: an evaluation resumes only where all of it is the same."""
    pixels = np.ascontiguousarray(data.x_test)
    return {
        "checkpoint_sha256": target.sha256,
        "model": target.name,
        "normalize": target.normalize,
        "source_sha256": target.source_sha256,
        "num_classes": data.num_classes,
        "dataset": data.name,
        "split": "test",
        "n": len(data.y_test),
        "data_sha256": hashlib.sha256(pixels.tobytes() + data.y_test.astype(np.int64).tobytes()).hexdigest(),
        "norm": suite.norm,
        "epsilon": suite.epsilon,
        "epsilons": list(epsilons),
        "version": suite.version,
        "attacks": list(suite.attacks),
        "seed": suite.seed,
        "batch_size": suite.batch_size,
        "precision": precision,
        "device": torch.device(suite.device).type,  # CPU and CUDA draw other random numbers
        "versions": package_versions(suite),
        "plain": suite.plain,
    }


def keep_earlier(folder: Path, fingerprint: dict[str, Any]) -> Path | None:
    """Move the report of another evaluation in this folder to a sub-folder ``earlier-DATE`` of its own.

    Returns:
        The sub-folder, or None if there was nothing to keep.
    """
    report = folder / FILES[0]
    if report.exists() and not report.is_file():
        raise UserError(f"{report} is no regular file: remove it, or use another --mark")
    try:
        earlier = NOT_WRITTEN_BEFORE | read_json(report)
        if all(earlier.get(key) == value for key, value in fingerprint.items()):
            return None
        date = re.sub(r"\D", "", earlier["date"])[:14]
    except FileNotFoundError:
        return None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # not written by this program
        date = str(int(report.stat().st_mtime))
    names = [name for name in FILES if (folder / name).exists()]
    places = (folder / f"earlier-{date}{f'-{number}' if number > 1 else ''}" for number in itertools.count(1))
    kept = next(place for place in places if not any((place / name).exists() for name in names))
    kept.mkdir(exist_ok=True)
    for name in reversed(names):  # the JSON file last: after a kill in between the next run moves the others
        (folder / name).replace(kept / name)
    return kept


def write_report(folder: Path, report: dict[str, Any], results: PerImageResults, labels: np.ndarray) -> None:
    """Write ``autoattack.npz`` and, once that is safe, ``autoattack.json``."""
    arrays = {
        "index": np.arange(len(labels)),
        "label": np.asarray(labels, np.int64),
        "clean_prediction": results.clean_prediction,
        "adversarial_prediction": results.adversarial_prediction[0],
        "robust": results.robust[0],
        "broken_by": results.broken_by[0],
    }
    write_atomically(folder / "autoattack.npz", lambda file: np.savez_compressed(file, **arrays))
    text = json.dumps(add_checksum(report), indent=2) + "\n"
    write_atomically(folder / "autoattack.json", lambda file: file.write(text.encode()))


def suite_label(version: str) -> str:
    """Return the name of this version's robust accuracy in ``autoattack.json``."""
    names = {
        "standard": "standard AutoAttack",
        "plus": "at least the standard AutoAttack",
        "rand": "AutoAttack for randomized networks",
    }
    return names.get(version, "upper bound")


def per_class(
    names: Sequence[str], labels: np.ndarray, clean_prediction: np.ndarray, robust: np.ndarray
) -> list[dict[str, Any]]:
    """Return clean and robust accuracy of every class, in the order of the labels.

    Args:
        names: of the K classes.
        labels, clean_prediction: (N,) in [0, K); robust: (N,) bool.

    Returns:
        K times ``name``, ``n`` (its images), ``clean_accuracy`` and ``robust_accuracy`` in percent of these; None where
        a class has no image.
    """
    n, num_clean, num_robust = (
        np.bincount(labels[mask], minlength=len(names)).tolist()
        for mask in (slice(None), clean_prediction == labels, robust)
    )
    return [
        {
            "name": name,
            "n": n[k],
            "clean_accuracy": 100 * num_clean[k] / n[k] if n[k] else None,
            "robust_accuracy": 100 * num_robust[k] / n[k] if n[k] else None,
        }
        for k, name in enumerate(names)
    ]


def throughput(
    attacks: Sequence[str], broken_by: np.ndarray, seconds: dict[str, float], processes: int = 1
) -> dict[str, float | None]:
    """Return images per second of wall time, of all processes together, as if they had been equally busy.

    Args:
        broken_by: (N,) str, as in ``PerImageResults``.
        seconds: of ``clean``, each attack and ``total``, summed over the processes.

    Returns:
        ``total``, of all N images from the first to the last attack; ``clean``; and of each attack, of the images that
        it was given: those robust so far. None where no time was spent.
    """
    num_robust = len(broken_by)
    given = {"total": num_robust}
    for name in ("clean", *attacks):
        given[name] = num_robust
        num_robust -= int((broken_by == name).sum())
    return {name: n * processes / seconds[name] if n and seconds[name] else None for name, n in given.items()}


def accuracies_at(suite: Suite, results: PerImageResults, epsilon: int) -> dict[str, Any]:
    """Return the accuracies at one epsilon, given by its index."""
    accuracies = results.accuracies(suite.attacks, epsilon)
    clean, robust, n = accuracies.pop("clean"), accuracies[suite.attacks[-1]], len(results.clean_prediction)
    return {
        "clean_accuracy": clean,
        "clean_accuracy_95": accuracy_interval(clean, n),
        "accuracy_after": accuracies,
        "robust_accuracy": robust,
        "robust_accuracy_95": accuracy_interval(robust, n),
    }


def curve(suite: Suite, results: PerImageResults, epsilons: Sequence[float]) -> list[dict[str, Any]]:
    """Return the accuracies at every epsilon, ascending; epsilons are given in the order of the results."""
    return [
        {
            "epsilon": epsilon,
            "epsilon_text": format_epsilon(epsilon),
            **accuracies_at(suite, results, index),
            "seconds": float(results.seconds[index].sum()),
        }
        for epsilon, index in sorted(zip(epsilons, range(len(epsilons)), strict=True))
    ]


def summarize(
    suite: Suite,
    results: PerImageResults,
    epsilons: Sequence[float],
    labels: np.ndarray,
    class_names: Sequence[str],
    processes: int = 1,
) -> dict[str, Any]:
    """Return the measured part of ``autoattack.json``: at the first epsilon, and a curve if there are more.

    Args:
        labels: (N,), of the attacked images.
    """
    seconds = dict(zip(("clean", *suite.attacks), results.seconds[0].sum(0).tolist(), strict=True))
    seconds["total"] = sum(seconds.values())
    names = [name.replace("_", " ") for name in class_names]
    return {
        "units": UNITS,
        "claim": suite_label(suite.version),
        **accuracies_at(suite, results, 0),
        "seconds": seconds,
        "throughput": throughput(suite.attacks, results.broken_by[0], seconds, processes),
        "per_class": per_class(names, labels, results.clean_prediction, results.robust[0]),
        **({"curve": curve(suite, results, epsilons)} if len(epsilons) > 1 else {}),
    }
