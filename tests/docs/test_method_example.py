"""The README's example of a method, as a reader would add it: one file, one line, and a flag of its own."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
ROOMS = ("attacks", "datasets", "engine", "losses", "models", "report", "utils")


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the training program with the example in it."""
    root = tmp_path_factory.mktemp("repository")
    for room in ROOMS:
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train_lbgat.py", root)
    (code,) = re.findall(r"<!-- example:method -->\n```python\n(.*?)```\n<!-- /example -->", README, flags=re.DOTALL)
    assert len(code.splitlines()) < 30
    (root / "losses" / "alp.py").write_text(code)
    registry = (root / "losses" / "__init__.py").read_text()
    registry = registry.replace("from losses.base", "from losses.alp import ALP\nfrom losses.base", 1)
    registry, n = re.subn(r"(METHODS: .*\{)\n", r'\1\n    "alp": ALP,\n', registry, count=1)
    assert n == 1
    (root / "losses" / "__init__.py").write_text(registry)
    return root


def run(repository, *args):
    command = [sys.executable, "train_lbgat.py", *args]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)


def test_help_lists_the_method_and_its_parameter(repository):
    shown = " ".join(run(repository, "--help").stdout.split())
    assert "Kannan et al., Adversarial Logit Pairing, 2018" in shown
    assert "--pairing" in shown and "weight of the logit pairing term" in shown


def test_trains_resumes_and_names_its_runs(repository):
    flags = shlex.split(
        "--method alp --pairing 2 --student wrn-10-1 --device cpu --batch-size 16 --limit-train 48 --val-size 16 "
        "--eval-size 16 --num-steps 2 --awp-gamma 0.005 --average-every epoch"
    )
    for epochs in ("1", "2"):
        done = run(repository, *flags, "--epochs", epochs)
        assert done.returncode == 0, done.stderr
    (folder,) = (repository / "Logs").iterdir()
    assert folder.name == "alp2-awp-digits-wrn10-1"
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert min(epochs[1]["loss_ce"], epochs[1]["loss_pairing"]) > 0


def test_impossible_value_is_refused_in_one_sentence(repository):
    done = run(repository, "--method", "alp", "--pairing", "-1")
    assert done.returncode == 1 and done.stderr.startswith("error: --pairing -1") and done.stderr.count("\n") == 1
