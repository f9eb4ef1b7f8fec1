"""The benchmark of AutoAttack compares the front end with ours."""

import json

import pyautoattack
import pytest

from benchmarks import autoattack as benchmark
from evaluation.autoattack.suite import SUITES
from tests.helpers import ROOT, Short


def test_it_compares_the_two(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pyautoattack, "AutoAttack", Short)
    checkpoint = str(ROOT / "checkpoints" / "quickstart-digits.pt")
    flags = ["--checkpoint", checkpoint, "--n", "3", "--batch-size", "2", "--epsilon", "0.25", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["autoattack.py", *flags])
    projection = pyautoattack.fab_base.projection_linf
    benchmark.main()
    assert pyautoattack.fab_base.projection_linf is projection  # what was timed is as before
    figures = json.loads((tmp_path / "autoattack.json").read_text())
    assert figures["images"] == 3 and figures["differences"] == []
    assert figures["robust"]["ours"] == figures["robust"]["front end"]
    assert 0 < figures["ours"]["rows"] < figures["front end"]["rows"]
    steps = ["clean", *SUITES["standard"]]
    assert list(figures["ours"]["seconds"]) == steps == list(figures["ours"]["profile"])
    assert set(figures["front end"]["seconds"]) <= set(steps)
    for step in steps:  # the parts make up the whole
        assert sum(figures["ours"]["profile"][step].values()) == pytest.approx(figures["ours"]["seconds"][step])
    assert figures["ours"]["profile"]["apgd-ce"]["forward"] > 0 < figures["ours"]["profile"]["apgd-ce"]["backward"]
    text = (tmp_path / "autoattack.md").read_text()
    assert capsys.readouterr().out == text
    assert f" **{figures['ratio']:.2f}** |" in text and "0 verdicts differ" in text
