"""What autoattack.json holds, made up; Markdown tables read back."""

import re
import sys

import numpy as np
import pytest

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")


def _make_result(num_classes=10, n=200, version="standard", attacks=STANDARD, **changes):
    """What autoattack.json holds after an evaluation of made-up verdicts, at three epsilons."""
    random = np.random.default_rng(0)
    labels = random.integers(0, num_classes, n)
    lost_to = random.choice(["clean", *attacks, ""], n, p=[0.3, *[0.3 / len(attacks)] * len(attacks), 0.4])
    left, given, accuracies, throughput = n, n, {}, {"total": n / 10}
    for name in ("clean", *attacks):
        given, left = left, left - int((lost_to == name).sum())
        accuracies[name], throughput[name] = 100 * left / n, given / 2
    per_class = []
    for k in range(num_classes):
        images = int((labels == k).sum())
        shares = [
            100 * int(((labels == k) & ~np.isin(lost_to, names)).sum()) / images if images else None
            for names in (["clean"], ["clean", *attacks])
        ]
        entry = {"name": f"class {k}", "n": images, "clean_accuracy": shares[0], "robust_accuracy": shares[1]}
        per_class.append(entry)
    clean = accuracies.pop("clean")
    points = (("0", 0, 70.0), ("0.1", 0.1, 40.0), ("0.2", 0.2, 12.5))
    return {
        "checkpoint_sha256": "a" * 64, "data_sha256": "b" * 64, "model": "wrn-10-1", "num_classes": num_classes,
        "dataset": "digits", "split": "test", "n": n, "norm": "linf", "epsilon": 0.1, "epsilon_text": "0.1",
        "version": version, "attacks": list(attacks), "seed": 1, "batch_size": 250,
        "versions": {"python": "3.11", "torch": "2.14"}, "clean_accuracy": clean, "accuracy_after": accuracies,
        "robust_accuracy": accuracies[attacks[-1]], "throughput": throughput, "per_class": per_class,
        "seconds": {**dict.fromkeys(("clean", *attacks), 2.0), "total": 2.0 * (1 + len(attacks))},
        "precision": "fp32", "processes": 1, "warnings": [], "checkpoint": "checkpoints/a run/last.pt",
        "hardware": "a machine", "command": "python eval_autoattack.py --checkpoint 'checkpoints/a run/last.pt'",
        "date": "2026-11-22T16:20:21",
        "curve": [
            {"epsilon": epsilon, "epsilon_text": text, "clean_accuracy": 70.0, "robust_accuracy": robust,
             "accuracy_after": dict.fromkeys(attacks, robust), "seconds": 3.0}
            for text, epsilon, robust in points
        ],
        **changes,
    }  # fmt: skip


def _markdown_tables(text):
    """Every table as rows of cells, unescaped; a pipe that is not escaped separates two cells."""
    tables = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
            assert len({len(row) for row in rows}) == 1 and all(re.fullmatch(r" -+:? ", cell) for cell in rows[1])
            del rows[1]
            tables.append([[re.sub(r"\\([^a-zA-Z0-9])", r"\1", cell.strip()) for cell in row] for row in rows])
    return tables


@pytest.fixture
def make_result():
    return _make_result


@pytest.fixture
def markdown_tables():
    return _markdown_tables


@pytest.fixture
def no_matplotlib(monkeypatch):
    import report

    monkeypatch.delattr(report, "plots", raising=False)
    monkeypatch.delitem(sys.modules, "report.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, not saved."""
    from report import plots

    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, file: drawn.append(figure))
    return drawn
