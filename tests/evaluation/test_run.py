"""eval_autoattack.py through its command line: the report, resuming, and every error as one sentence."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import eval_autoattack
from evaluation import attack_loop
from evaluation.autoattack.suite import STANDARD
from evaluation.config import parse_eval
from evaluation.summary import FILES
from evaluation.target import LoadedModel, load_network, run_name, warn_of_other_training
from models import create_model
from models.weights import read_file
from tests.helpers import QUICK, ROOT, digits
from utils.errors import UserError
from utils.files import file_hash, lock_folder
from utils.options import format_epsilon


def test_standard_evaluation_of_a_training_run(program, checkpoint, tmp_path):
    status, out, err = program("--checkpoint", checkpoint, "--epsilon", "51/510", "--n-examples", 20)
    assert status == 0, err
    folder = tmp_path / "Logs" / "some-run"  # the training run's
    assert sorted(path.name for path in folder.iterdir()) == [
        "adversarial.png", "autoattack.json", "autoattack.log", "autoattack.npz", "classes.png", "evaluation.lock",
        "report.html", "report.md",
    ]  # fmt: skip
    report = json.loads((folder / "autoattack.json").read_text())
    arrays = np.load(folder / "autoattack.npz")
    model = create_model("wrn-10-1", 10)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["student"])
    x, y = digits(20)
    np.testing.assert_array_equal(arrays["index"], np.arange(20))
    np.testing.assert_array_equal(arrays["label"], y)
    np.testing.assert_array_equal(arrays["clean_prediction"], model.eval()(x).argmax(1))
    np.testing.assert_array_equal(arrays["broken_by"] == "", arrays["robust"])
    assert arrays["robust"].dtype == bool
    for name, before in zip(STANDARD, ("clean", *STANDARD), strict=False):
        broken = 5.0 * (arrays["broken_by"] == name).sum()
        after = {"clean": report["clean_accuracy"], **report["accuracy_after"]}
        assert after[before] - after[name] == pytest.approx(broken)
    assert report["clean_accuracy"] == 5.0 * (arrays["clean_prediction"] == arrays["label"]).sum() > 50
    assert report["robust_accuracy"] == 5.0 * arrays["robust"].sum() == report["accuracy_after"]["square"]
    assert report["epsilon"] == 0.1 and report["epsilon_text"] == "0.1" and report["norm"] == "linf"
    assert report["n"] == 20 and report["split"] == "test" and report["seed"] == 1 and report["batch_size"] == 250
    assert report["dataset"] == "digits" and report["model"] == "wrn-10-1" and report["num_classes"] == 10
    assert report["checkpoint_sha256"] == file_hash(checkpoint) and report["checkpoint"] == str(checkpoint)
    assert report["versions"]["torch"] == torch.__version__.split("+")[0]
    assert report["versions"]["pyautoattack"] == "0.2.0"
    assert set(report["seconds"]) == {"clean", *STANDARD, "total"} and report["seconds"]["apgd-ce"] > 0
    assert report["command"].startswith("python eval_autoattack.py --log-dir ")
    assert "--epsilon 51/510" in report["command"]
    log = (folder / "autoattack.log").read_text()
    assert "setting parameters for standard version" in log and "apgd-ce - 1/1 - " in log
    assert (folder / "adversarial.png").read_bytes().startswith(b"\x89PNG")
    clean, robust = report["clean_accuracy"], report["robust_accuracy"]
    low, high = report["robust_accuracy_95"]
    interval = f"robust ±{max(high - report['robust_accuracy'], report['robust_accuracy'] - low):.1f}"
    figures = f"clean {clean:.2f}%  robust {robust:.2f}%"
    assert out.splitlines()[-1] == f"{figures}  (AutoAttack, epsilon 0.1, 20 images, {interval})"
    assert re.search(rf"^\| apgd-ce +\| +{report['accuracy_after']['apgd-ce']:.2f}% \|", out, re.MULTILINE)
    assert "80/80" in err and f"robust {robust:.2f}%" in err  # the progress bar


def test_epsilon_is_printed_as_typed():
    for text in ("0.031", "0.1", "8/255", "2/255", "1", "0", "0.5", "0.0313"):
        assert format_epsilon(eval_autoattack.parse_eval(["--epsilon", text]).epsilon) == text
    assert format_epsilon(eval_autoattack.parse_eval(["--epsilon", "8.0"]).epsilon) == "8/255"


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_evaluation_resumes_with_the_same_command(
    program, checkpoint, tmp_path, monkeypatch, number, status
):
    state, results, calls = tmp_path / "Logs/some-run/autoattack.state.npz", [], []
    attack_chunk = attack_loop.attack_chunk

    def interrupted(*args):
        calls.append(len(calls))
        for step in attack_chunk(*args):
            if len(calls) == 3 and step.name != "clean":
                os.kill(os.getpid(), number)
            yield step

    monkeypatch.setattr(attack_loop, "attack_chunk", interrupted)
    before = signal.getsignal(number)
    code, out, err = program("--checkpoint", checkpoint, *QUICK)
    assert (code, out) == (status, "")
    assert err.splitlines()[-1].startswith("interrupted: rerun the same command to resume from what is saved")
    assert "Traceback" not in err
    assert signal.getsignal(number) is before
    assert np.load(state)["progress"].tolist() == [[2, 2, 1]]
    code, out, _ = program("--checkpoint", checkpoint, *QUICK)
    assert code == 0 and len(calls) == 4  # two finished, one interrupted, and that one resumed
    assert not state.exists()
    results.append(np.load(tmp_path / "Logs/some-run/autoattack.npz"))
    program("--checkpoint", checkpoint, *QUICK, "--mark", "in-one-go")
    results.append(np.load(tmp_path / "Logs/in-one-go/autoattack.npz"))
    for name in results[0].files:
        np.testing.assert_array_equal(results[0][name], results[1][name])
    assert "(upper bound by AutoAttack custom: apgd-ce, epsilon 0.02, 6 images, " in out.splitlines()[-1]
    assert "resuming: 5 of 6 steps are finished" in (tmp_path / "Logs/some-run/autoattack.log").read_text()


def test_one_evaluation_of_a_mark_at_a_time(program, checkpoint, tmp_path):
    folder = tmp_path / "Logs/some-run"
    folder.mkdir(parents=True)
    with lock_folder(folder, "evaluation"):
        status, out, err = program("--checkpoint", checkpoint, *QUICK)
        assert (status, out) == (1, "")
        assert err == f"error: another evaluation is running in {folder}: wait for it, or use another --mark\n"
        assert program("--checkpoint", checkpoint, *QUICK, "--mark", "other")[0] == 0
    assert program("--checkpoint", checkpoint, *QUICK)[0] == 0


def test_another_epsilon_than_in_training_gives_a_notice(program, checkpoint, tmp_path, capsys):
    content, config = torch.load(checkpoint, weights_only=True), parse_eval(["--epsilon", "0.02"])
    torch.save({**content, "config": {**content["config"], "epsilon": 8 / 255, "norm": "linf"}}, tmp_path / "net.pt")
    status, _, err = program("--checkpoint", tmp_path / "net.pt", *QUICK)
    assert status == 0 and err.startswith(
        "notice: the network was trained at epsilon 8/255 in linf and is attacked at epsilon 0.02 in linf\n"
    )
    for run, told in [
        ({"epsilon": 0.02, "norm": "l2"}, "trained at epsilon 0.02 in l2 and is attacked at epsilon 0.02 in linf"),
        ({"epsilon": 0.02, "norm": "linf", "method": "at"}, ""),
        ({"epsilon": 0.1, "norm": "linf", "method": "natural"}, ""),
        ({}, ""),  # a published file
    ]:
        warn_of_other_training(LoadedModel(torch.nn.Identity(), "a", 10, None, run), config)
        err = capsys.readouterr().err
        assert told in err and bool(told) == bool(err)


def test_the_report_of_another_evaluation_is_kept(program, checkpoint, tmp_path):
    def reports():
        files = (tmp_path / "Logs/some-run").rglob("autoattack.json")
        return sorted(json.loads(path.read_text())["epsilon_text"] for path in files)

    program("--checkpoint", checkpoint, *QUICK)
    program("--checkpoint", checkpoint, *QUICK)
    assert reports() == ["0.02"]
    program("--checkpoint", checkpoint, *QUICK, "--epsilon", "8/255")
    assert reports() == ["0.02", "8/255"]
    assert len(list((tmp_path / "Logs/some-run").rglob("autoattack.npz"))) == 2


def test_published_file_with_the_published_flags(program, tmp_path):
    """module., sub_block1, legacy format; 100 classes are CIFAR-100, here from an npz file."""
    torch.manual_seed(0)
    state = create_model("wrn-34-1", 100).state_dict()
    published = {f"module.{k}": v for k, v in {**state, "sub_block1.layer.0.bn1.weight": torch.ones(2)}.items()}
    path = tmp_path / "cifar100_wrn34.pt"
    torch.save(published, path, _use_new_zipfile_serialization=False)
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (4, 32, 32, 3), np.uint8), random.integers(0, 100, 4)
    names = np.array([f"class_{i}" for i in range(100)])
    np.savez(tmp_path / "cifar100.npz", x_train=images, y_train=labels, x_test=images, y_test=labels, class_names=names)
    flags = ("--widen_factor", 1, "--dataparallel", "True", "--num_classes", 100, "--epsilon", "8.0")
    status, out, err = program("--model-path", path, "--data-dir", tmp_path, *flags)
    assert status == 0, err
    assert "(AutoAttack, epsilon 8/255, 4 images, " in out.splitlines()[-1]
    report = json.loads((tmp_path / "Logs/cifar100_wrn34/autoattack.json").read_text())
    assert (report["model"], report["dataset"], report["norm"]) == ("wrn-34-1", "cifar100", "linf")
    assert program("--model-path", path, "--data-dir", tmp_path)[0] == 0  # all of it is read off the file


def test_plain_has_the_same_report(program, checkpoint, tmp_path):
    """The official front end on the untouched network: the same verdicts, beside a report of its own."""
    assert program("--checkpoint", checkpoint, *QUICK, "--mark", "run")[0] == 0
    status, out, err = program("--checkpoint", checkpoint, *QUICK, "--mark", "run", "--plain")
    assert status == 0, err
    assert re.fullmatch(r"clean \S+%  robust \S+%  \(.*apgd-ce, epsilon 0\.02, 6 images.*\)", out.splitlines()[-1])
    folder = tmp_path / "Logs/run"
    (earlier,) = folder.glob("earlier-*")
    reports = [json.loads((path / "autoattack.json").read_text()) for path in (earlier, folder)]
    assert [report["plain"] for report in reports] == [False, True] and reports[0].keys() == reports[1].keys()
    ours, plain = (np.load(path / "autoattack.npz") for path in (earlier, folder))
    for name in ours.files:
        np.testing.assert_array_equal(ours[name], plain[name])
    assert {path.name for path in earlier.iterdir()} == set(FILES) - {"curve.png"}


def broken(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "part, flags, what",
    [
        ("write_pages", (), "report.html failed: [Errno 28] No space left on device"),
        ("write_atomically", (), "adversarial.png failed"),
        ("cross_checks", ("--cross-checks", 1), "--cross-checks failed"),
        ("save_adversarial", ("--save-adv", "adv.npz"), "--save-adv failed"),
        ("export_robustbench", ("--export", "robustbench", "zoo"), "--export failed"),
        ("summary.write_report", (), "autoattack.json failed"),
    ],
)
def test_the_result_is_printed_whatever_fails(program, checkpoint, tmp_path, monkeypatch, part, flags, what):
    """And the state is kept: the same command writes the report again without an attack."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Logs/some-run"
    with monkeypatch.context() as patch:
        patch.setattr(f"evaluation.run.{part}", broken)
        status, out, err = program("--checkpoint", checkpoint, *QUICK, *flags)
    assert status == 1 and out.splitlines()[-1].startswith("clean ")
    assert err.splitlines()[-1].startswith(f"error: {what}") and "Traceback" not in err
    assert (folder / "autoattack.json").exists() == (part != "summary.write_report")
    assert "No space left" in (folder / "autoattack.log").read_text() and (folder / "autoattack.state.npz").exists()
    monkeypatch.setattr(attack_loop, "attack_chunk", broken)
    status, again, err = program("--checkpoint", checkpoint, *QUICK, *flags)
    assert status == 0 and again.splitlines()[-1] == out.splitlines()[-1], err
    assert (folder / "report.html").exists() and not (folder / "autoattack.state.npz").exists()


def test_a_path_that_is_not_utf8_loses_no_verdict(program, checkpoint, tmp_path):
    path = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff.pt")
    shutil.copy(checkpoint, path)
    _, out, err = program("--checkpoint", path, *QUICK)
    assert out.splitlines()[-1].startswith("clean ") and "Traceback" not in err
    (folder,) = (tmp_path / "Logs").iterdir()
    assert json.loads((folder / "autoattack.json").read_text())["checkpoint"] == path


def test_the_hash_is_of_the_bytes_that_were_attacked(program, checkpoint, tmp_path, monkeypatch):
    """Also when the file changes after it was read."""
    path, digest = tmp_path / "net.pt", file_hash(checkpoint)
    shutil.copy(checkpoint, path)

    def read_and_change(path):
        data = read_file(path)
        Path(path).write_bytes(b"other weights")
        return data

    monkeypatch.setattr("evaluation.target.read_file", read_and_change)
    status, _, err = program("--checkpoint", path, *QUICK)
    assert status == 0, err
    (folder,) = (tmp_path / "Logs").iterdir()
    assert json.loads((folder / "autoattack.json").read_text())["checkpoint_sha256"] == digest


def test_without_matplotlib_one_line_says_so(program, checkpoint, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))
    status, out, _ = program("--checkpoint", checkpoint, *QUICK)
    assert status == 0 and out.count("matplotlib is not installed") == 1
    assert not (tmp_path / "Logs/some-run/adversarial.png").exists()


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--checkpoint", ""], "pass --checkpoint FILE"),
        (["--checkpoint", "none.pt"], "no checkpoint at none.pt"),
        (["--student", "wrn-16-1"], "another architecture"),
        (["--student", "resnet18"], "another architecture"),
        (["--student", "wrn-11-1"], "depth is 10, 16"),
        (["--student", "vgg"], "unknown model 'vgg'"),
        (["--dataset", "svhn"], "unknown data set 'svhn'"),
        (["--version", "custom"], "--attacks goes with --version custom"),
        (["--version", "custom", "--attacks", "pgd,square"], "unknown attack pgd; choose apgd-ce"),
        (["--version", "custom", "--attacks", ","], "unknown attack ','"),
        (["--version", "best"], "invalid choice: 'best'"),
        (["--epsilon", "-0.1"], "is not a number of 0 or more"),
        (["--epsilon=-8/255"], "is not a number of 0 or more"),
        (["--epsilon", "1.5"], "above 1, the range of a pixel"),
        (["--epsilon", "9"], "write 0.031 or 8/255, or 9/255"),
        (["--epsilon", "nan"], "is not a number"),
        (["--epsilon", "inf"], "is not a number"),
        (["--epsilon", "1e999"], "is too large"),
        (["--epsilon", "eight"], "is not a number"),
        (["--epsilon", "8/0"], "is not a fraction"),
        (["--epsilons", "0,1e99999999"], "is not a number"),
        (["--batch-size", "0"], "--batch-size 0 must be at least 1"),
        (["--batch-size", str(2**63)], "must be from 1 to 1000000"),
        (["--batch-size", "auto"], "invalid int value: 'auto'"),
        (["--plain", "--precision", "bf16"], "--plain is fp32 without torch.compile"),
        (["--plain", "--compile", "on"], "--plain is fp32 without torch.compile"),
        (["--n-examples", "-1"], "--n-examples -1 must be 0"),
        (["--device", "tpu"], "choose auto, cpu, cuda"),
        (["--norm", "l1"], "invalid choice: 'l1'"),
        (["--mark", "../x"], "names a folder"),
        (["--nonsense"], "--help lists the flags"),
        pytest.param(
            ["--device", "cuda"],
            "no such CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_sentence(program, checkpoint, tmp_path, flags, sentence):
    status, out, err = program("--checkpoint", checkpoint, *flags)
    assert (status, out) == (1, "")
    assert sentence in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "Logs").exists()


def damaged_checkpoints(folder, state):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "trap"),)

    torch.save(state, folder / "truncated.pt")
    (folder / "truncated.pt").write_bytes((folder / "truncated.pt").read_bytes()[:-5000])
    torch.save({**state, "x": Evil()}, folder / "code.pt")
    torch.save(create_model("wrn-10-1", 100).state_dict(), folder / "hundred.pt")
    torch.save(create_model("resnet18", 10).state_dict(), folder / "untold.pt")
    torch.save({"a": torch.zeros(3)}, folder / "stranger.pt")
    torch.save(state, folder / "plain.pt")
    torch.save({**state, "fc.bias": torch.full((10,), torch.nan)}, folder / "nan.pt")
    for name, value in {"student": 3, "dataset": ["digits"], "epsilon": "0.1"}.items():
        torch.save({"student": state, "config": {"norm": "linf", name: value}}, folder / f"odd-{name}.pt")


def test_checkpoints_that_do_not_fit(program, checkpoint, tmp_path):
    damaged_checkpoints(tmp_path, torch.load(checkpoint, weights_only=True)["student"])
    for name, flags, sentence in [
        ("truncated", ["--dataset", "digits"], "truncated"),
        ("code", ["--dataset", "digits"], "never run here"),
        ("hundred", ["--dataset", "digits"], "is of 100 classes and data set 'digits' has 10"),
        ("untold", ["--dataset", "digits"], "does not tell its network: pass --student, e.g. resnet18, resnet18-guide"),
        ("stranger", ["--dataset", "digits"], "does not tell its network"),
        ("stranger", ["--dataset", "digits", "--student", "wrn-10-1"], "another architecture"),
        ("plain", [], "does not tell its data set of 10 classes: pass --dataset"),
        ("odd-student", ["--dataset", "digits"], "is damaged: its configuration says student 3"),
        ("odd-dataset", [], "is damaged: its configuration says dataset ['digits']"),
        ("odd-epsilon", ["--dataset", "digits"], "is damaged: its configuration says epsilon '0.1'"),
        ("nan", ["--dataset", "digits", "--n-examples", "4"], "outputs are not finite"),
    ]:
        status, out, err = program("--checkpoint", tmp_path / f"{name}.pt", *flags)
        assert (status, out) == (1, "")
        assert (
            sentence in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
        )
    assert not (tmp_path / "trap").exists()


def test_data_that_does_not_fit(program, checkpoint, tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # no network
    images = np.zeros((4, 16, 16, 3), np.uint8)
    arrays = {"x_train": images, "y_train": np.arange(4), "x_test": images, "y_test": np.arange(4)}
    np.savez(tmp_path / "three.npz", **arrays, class_names=np.array(["a", "b", "c"]))
    np.savez(tmp_path / "four.npz", **arrays, class_names=np.array(["a", "b", "c", "d"]))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "four.npz").read_bytes()[:3000])
    torch.save(create_model("wrn-10-1", 4).state_dict(), tmp_path / "four.pt")
    for flags, sentence in [
        (["--dataset", "three"], "labels run from 0 to 3, outside the 3 classes"),
        (["--dataset", "torn"], "torn.npz is not a readable npz file"),
        (["--dataset", "four"], "is of 10 classes and data set 'four' has 4"),
        (["--dataset", "four", "--checkpoint", tmp_path / "four.pt"], "apgd-t needs 10 classes and here are 4"),
        (["--dataset", "cifar10"], "could not be downloaded"),
    ]:
        status, out, err = program("--checkpoint", checkpoint, "--data-dir", tmp_path, *flags)
        assert (status, out) == (1, "")
        assert (
            sentence in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err
        )
    four = ("--dataset", "four", "--checkpoint", tmp_path / "four.pt", "--data-dir", tmp_path)
    assert program(*four, "--version", "custom", "--attacks", "apgd-ce,fab,square")[0] == 0


def test_unwritable_log_folder(program, checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    status, out, err = program("--checkpoint", checkpoint, *QUICK, "--log-dir", tmp_path / "file" / "Logs")
    assert (status, out) == (1, "") and err.count("\n") == 1 and "choose another folder" in err


def test_no_suite_installed(program, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    status, out, err = program("--checkpoint", checkpoint)
    assert (status, out, err) == (1, "", "error: AutoAttack is not installed: pip install pyautoattack\n")


def test_real_command_line(tmp_path):
    """The program as a user calls it, from another folder."""
    command = [sys.executable, str(ROOT / "eval_autoattack.py"), "--checkpoint", "none.pt", "--epsilon", "8/255"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: no checkpoint at none.pt: check the path\n"


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--checkpoint runs/lbgat6/last.pt", "lbgat6"),
        ("--checkpoint runs/ikl/average-epoch200.pt", "ikl"),
        ("--checkpoint runs/lbgat6/student-epoch091.pt --mark other", "other"),
        ("--model-path downloads/lbgat0_wrn34_10.pt", "lbgat0_wrn34_10"),
    ],
)
def test_run_name(flags, name):
    assert run_name(parse_eval(flags.split())) == name


def test_a_link_to_itself_is_no_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    path.symlink_to(path)
    config = parse_eval(["--checkpoint", str(path)])
    assert run_name(config)
    with pytest.raises(UserError, match=r"no checkpoint at .*last\.pt"):
        load_network(config)
