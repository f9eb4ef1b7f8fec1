"""The tables of a study, from folders of finished runs."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from datasets import load_test
from models import create_model
from results import study
from results.pgd20 import measure
from utils.errors import UserError

ROBUST = {"trades6": (8, 6), "lbgat0": (5, 7), "at": (4,)}  # of 10 images, for each seed
CLEAN = {"trades6": (8, 8), "lbgat0": (10, 9), "at": (9,)}


def write_run(folder, method, seed, epochs=3):
    folder = folder / f"{method}-epsilon0.1-seed{seed}"
    attack = folder / "epsilon0.1"
    attack.mkdir(parents=True)
    robust, clean = (np.arange(10) < figures[method][seed - 1] for figures in (ROBUST, CLEAN))
    report = {"epsilon": 0.1, "n": 10, "version": "standard", "data_sha256": "a",
              "clean_accuracy": 100 * clean.mean(), "robust_accuracy": 100 * robust.mean()}  # fmt: skip
    guide = {"guide_clean": 90.0 + seed} if method == "lbgat0" else {}
    lines = [{"epoch": epoch, "seconds": 20.0, **guide} for epoch in range(1, epochs + 1)]
    (folder / "config.json").write_text(
        json.dumps({"epochs": epochs, "seed": seed, "student": "wrn-10-1", "dataset": "digits"})
    )
    (attack / "autoattack.json").write_text(json.dumps(report))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "train.log").write_text("time at-seed1: at, seed 1, fp32; a computer, torch 2\nlog\n")
    if method == "lbgat0":
        (folder / "pgd20.json").write_text(json.dumps({"clean": 90.0 + seed, "pgd20": {"0.1": 70 + 2.0 * seed}}))
    np.savez(attack / "autoattack.npz", clean_prediction=np.where(clean, 1, 0), label=np.ones(10, int), robust=robust)


def cells(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_tables_and_picture(tmp_path, monkeypatch):
    for method, figures in ROBUST.items():
        for seed in range(1, len(figures) + 1):
            write_run(tmp_path / "Logs", method, seed)
    (tmp_path / "Logs" / "ikl-epsilon0.1-seed1").mkdir()  # not finished
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path / "Logs"), "--out", str(out)])
    study.main()
    text = (out / "study.md").read_text()
    assert cells(text, "|     0.1 | TRADES6") == [
        "0.1",
        "TRADES6",
        "1, 2",
        "80.0 ± 0.0",
        "70.0 ± 14.1",
        "",
        "",
        "",
        "60",
    ]
    assert cells(text, "|     0.1 | LBGAT0  |") == [
        "0.1",
        "LBGAT0",
        "1, 2",
        "95.0 ± 7.1",
        "60.0 ± 14.1",
        "91.5 ± 0.7",
        "73.0 ± 1.4",
        "91.5 ± 0.7",
        "60",
    ]
    assert cells(text, "|     0.1 | AT      |") == ["0.1", "AT", "1", "90.0", "40.0", "", "", "", "60"]
    assert (
        "digits, wrn-10-1, 3 epochs, the last one's weights; AutoAttack (standard) on the first 10 test images" in text
        and "IKL" not in text
    )
    assert "Trained on a computer, torch 2." in text
    entry, of_at = json.loads((out / "study.json").read_text())["differences"]
    assert entry["methods"] == ["LBGAT0", "TRADES6"]
    assert (entry["seeds"], of_at["seeds"], of_at["methods"]) == ([1, 2], [1], ["AT", "TRADES6"])
    assert (entry["clean"][0], entry["robust"][0]) == pytest.approx((15, -10))
    assert entry["robust"][1] < -10 < entry["robust"][2]
    assert (out / "plane.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "runs/at-epsilon0.1-seed1/train.log").read_text().endswith("log\n")


def test_interrupted_evaluations_count_with_the_images_that_all_have_finished(tmp_path, monkeypatch, capsys):
    write_run(tmp_path / "Logs", "trades6", 1)
    write_run(tmp_path / "Logs", "lbgat0", 1)
    attack = tmp_path / "Logs/lbgat0-epsilon0.1-seed1/epsilon0.1"
    settings = json.loads((attack / "autoattack.json").read_text())
    (attack / "autoattack.json").unlink()
    broken_by = np.array([["clean", "", "", "fab-t", "", "", "", "clean", "", ""]])
    state = {"progress": np.array([[3, 3, 1]]), "seconds": np.zeros((1, 3, 3)), "batch_size": 4, "broken_by": broken_by}
    np.savez(attack / "autoattack.state.npz", fingerprint=json.dumps(settings), **state)
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path / "Logs"), "--out", str(out)])
    study.main()
    text = (out / "study.md").read_text()
    assert "on the first 8 test images (ended within the first 10); percent; one seed" in text
    assert cells(text, "|     0.1 | LBGAT0  |")[3:5] == ["75.0", "62.5"]
    assert cells(text, "|     0.1 | TRADES6")[3:5] == ["100.0", "100.0"]
    begun = state | {"progress": np.zeros((1, 3))}
    np.savez(attack / "autoattack.state.npz", fingerprint=json.dumps(settings), **begun)
    study.main()
    assert "left out: lbgat0-epsilon0.1-seed1, whose attacks" in capsys.readouterr().err
    assert "LBGAT0" not in (out / "study.md").read_text()
    shutil.rmtree(tmp_path / "Logs/trades6-epsilon0.1-seed1")
    with pytest.raises(UserError, match="no evaluation has finished its first images: run the study again"):
        study.main()


def test_a_precision_for_each_epsilon_and_once_more_from_the_copies(tmp_path, monkeypatch):
    for method in ("trades6", "lbgat0"):
        write_run(tmp_path / "Logs", method, 1)
        first = tmp_path / "Logs" / f"{method}-epsilon0.1-seed1" / "epsilon0.1"
        second = shutil.copytree(first, first.parent / "epsilon0.2")
        report = json.loads((first / "autoattack.json").read_text())
        (second / "autoattack.json").write_text(json.dumps(report | {"epsilon": 0.2, "precision": "bf16"}))
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path / "Logs"), "--out", str(out)])
    study.main()
    text = (out / "study.md").read_text()
    what = "on the first 10 test images"
    assert f"at 0.1 AutoAttack (standard) {what}; at 0.2 AutoAttack (standard, queries in bf16) {what}; percent" in text
    before = {file: file.read_bytes() for file in out.rglob("*") if file.suffix != ".png" and file.is_file()}
    monkeypatch.setattr(sys, "argv", ["study", str(out / "runs"), "--out", str(out)])
    study.main()
    assert before == {file: file.read_bytes() for file in before}
    (second / "autoattack.json").write_text(json.dumps(report | {"epsilon": 0.2, "precision": "fp32"}))
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path / "Logs"), "--out", str(out)])
    with pytest.raises(UserError, match=r"the runs differ in precision \(bf16, fp32\): compare equal ones"):
        study.main()


def test_methods_without_a_name_here_come_last(tmp_path):
    for method in ("trades6", "at"):
        write_run(tmp_path, method, 1)
    (tmp_path / "trades6-epsilon0.1-seed1").rename(tmp_path / "trades3-epsilon0.1-seed1")
    groups = study.grouped([study.read(folder / "epsilon0.1") for folder in sorted(tmp_path.iterdir())])
    assert [line.split("|")[2].strip() for line in study.table(groups).splitlines()[2:]] == ["AT", "trades3"]


def test_unequal_runs_are_refused(tmp_path):
    for method, epochs in (("at", 3), ("trades6", 4)):
        write_run(tmp_path, method, 1, epochs)
    with pytest.raises(UserError, match=r"the runs differ in epochs \(3, 4\)"):
        study.grouped([study.read(folder / "epsilon0.1") for folder in sorted(tmp_path.iterdir())])


def test_pgd20_on_the_whole_test_set(tmp_path):
    torch.manual_seed(0)
    model, path = create_model("wrn-10-1", 10).eval(), tmp_path / "last.pt"
    config = {"student": "wrn-10-1", "dataset": "digits", "norm": "linf"}
    torch.save({"config": config, "student": model.state_dict()}, path)
    x, y = load_test("digits")
    with torch.no_grad():
        clean = 100 * (model(x).argmax(1) == y).double().mean().item()
    figures = measure(path, ["0", "0.1"], "data", torch.device("cpu"))
    assert figures["images"] == len(y) == 360 and figures["clean"] == figures["pgd20"]["0"] == pytest.approx(clean)
    assert figures["pgd20"]["0.1"] < clean
    torch.save({"config": config | {"norm": "l2"}, "student": model.state_dict()}, path)
    assert measure(path, ["2"], "data", torch.device("cpu"))["pgd20"].keys() == {"2"}
    torch.save(model.state_dict(), path)
    with pytest.raises(UserError, match=r"does not say how it was trained: pass a run's last\.pt or best\.pt"):
        measure(path, ["0"], "data", torch.device("cpu"))


def test_an_unfinished_training_is_refused_and_unpaired_seeds_are_left_out(tmp_path):
    write_run(tmp_path, "trades6", 1)
    write_run(tmp_path, "lbgat0", 2)
    groups = study.grouped([study.read(folder / "epsilon0.1") for folder in sorted(tmp_path.iterdir())])
    assert study.differences(groups) == []
    assert "PGD-20" in study.table(groups) and "guide" in study.table(groups)
    del groups[0.1]["lbgat0"]
    assert "PGD-20" not in study.table(groups) and "guide" not in study.table(groups)
    (tmp_path / "trades6-epsilon0.1-seed1" / "metrics.jsonl").write_text('{"epoch": 1, "seconds": 20.0}\n')
    with pytest.raises(UserError, match="has 1 of 3 epochs: run the script again"):
        study.read(tmp_path / "trades6-epsilon0.1-seed1" / "epsilon0.1")
