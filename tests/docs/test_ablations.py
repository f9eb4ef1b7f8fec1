"""The table of the ablations, from folders of finished runs."""

import json
import sys

import pytest

from results import ablations
from utils.errors import UserError


def write_run(folder, name, seed, clean, robust, guide=None, epochs=2):
    folder = folder / f"{name}-seed{seed}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"dataset": "digits", "epochs": 2, "seed": seed}))
    (folder / "pgd20.json").write_text(json.dumps({"images": 360, "clean": clean, "pgd20": {"0.2": robust}}))
    lines = [{"epoch": epoch, **({"guide_clean": guide} if guide else {})} for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "train.log").write_text(f"{name}: seed {seed}, fp32; CPU, torch 2\n")


def cells(text, start):
    (line,) = [line for line in text.splitlines() if start in line]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_differences_are_over_the_seeds_that_both_have(tmp_path, monkeypatch):
    logs, out = tmp_path / "Logs", tmp_path / "out"
    for seed, clean, robust in ((1, 90.0, 40.0), (2, 92.0, 44.0)):
        write_run(logs, "lbgat0", seed, clean, robust, guide=95.0 + seed)
    write_run(logs, "frozen", 2, 95.0, 41.0)
    monkeypatch.setattr(sys, "argv", ["ablations", str(logs), "--out", str(out)])
    ablations.main()
    text = (out / "ablations.md").read_text()
    assert cells(text, "**LBGAT0**") == ["1, 2", "91.0 ± 1.4", "", "42.0 ± 2.8", "", "96.5 ± 0.7"]
    assert cells(text, "frozen guide") == ["2", "95.0", "+3.0", "41.0", "-3.0", ""]
    assert "PGD-20 at 0.2 on 360 test images" in text and "CPU, torch 2." in text
    assert (out / "runs/frozen-seed2/train.log").exists()
    write_run(logs, "beta6", 1, 1.0, 1.0, epochs=1)
    with pytest.raises(UserError, match=r"has 1 of 2 epochs: run the script again"):
        ablations.main()


def test_unequal_and_unknown_runs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablations", str(tmp_path / "Logs"), "--out", str(tmp_path / "out")])
    write_run(tmp_path / "Logs", "lbgat0", 1, 90.0, 40.0)
    write_run(tmp_path / "Logs", "beta6", 1, 90.0, 40.0)
    config = tmp_path / "Logs/beta6-seed1/config.json"
    config.write_text(config.read_text().replace('"digits"', '"cifar10"'))
    with pytest.raises(UserError, match=r"the runs differ in dataset \(cifar10, digits\)"):
        ablations.main()
    write_run(tmp_path / "Logs", "mine", 1, 90.0, 40.0)
    with pytest.raises(UserError, match="mine-seed1 is no variant"):
        ablations.main()


def test_nothing_to_show(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ablations", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=r"no finished run in .*: run sh/ablations\.sh first"):
        ablations.main()
