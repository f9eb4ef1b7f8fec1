"""Exports: RobustBench, the file of adversarial images, and checkpoints that load without our code."""

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pyautoattack
import pytest
import torch
from torch import nn

from engine.config import TrainConfig
from engine.trainer import Trainer
from evaluation.adversarial import save_adversarial
from evaluation.config import EvalConfig
from evaluation.robustbench import check_destinations, export_robustbench, leaderboard_gaps, robustbench_class
from evaluation.target import LoadedModel
from models import create_model
from tests.helpers import CHECKS, QUICK, ROOT, suite
from utils.errors import UserError

# names and shapes of the state dicts of RobustBench 1.1.1's own classes, 100 classes
SHAPES = json.loads((ROOT / "tests/robustbench_shapes.json").read_text())
RESULT = {
    "dataset": "cifar100", "norm": "linf", "epsilon": 8 / 255, "epsilon_text": "8/255", "n": 10000,
    "version": "standard", "attacks": ["apgd-ce", "apgd-t", "fab-t", "square"], "seed": 1, "clean_accuracy": 60.644,
    "accuracy_after": {"apgd-ce": 33.0, "apgd-t": 29.35, "fab-t": 29.34, "square": 29.33}, "robust_accuracy": 29.33,
    "command": "python eval_autoattack.py --checkpoint x.pt", "versions": {"torch": "2.4.0"}, "hardware": "one GPU",
    "precision": "fp32", "date": "2030-01-01", "checkpoint_sha256": "c" * 64, "data_sha256": "d" * 64,
    "seconds": {"clean": 1.0, "apgd-ce": 2.0, "apgd-t": 3.0, "fab-t": 4.0, "square": 5.0, "total": 15.0},
}  # fmt: skip


def export(folder, changed=None, run=None):
    """-> the line, the model_info file, the card and the exported network's own state dict."""
    result = {**RESULT, **(changed or {})}
    target = LoadedModel(create_model("wrn-10-1", 100).eval(), "wrn-10-1", 100, "cifar100", run or {})
    line = export_robustbench(folder, "some-run", target, result)
    norm = {"linf": "Linf", "l2": "L2"}[result["norm"]]
    info = json.loads((folder / "model_info" / result["dataset"] / norm / "some-run.json").read_text())
    return line, info, (folder / "README.md").read_text(), target.model.state_dict()


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet18", "preactresnet18"])
def test_names_and_shapes_are_robustbenchs(name):
    ours = {key: list(tensor.shape) for key, tensor in create_model(name, 100).state_dict().items()}
    assert ours == SHAPES[name]


@pytest.mark.parametrize("name", ["wrn-16-2", "resnet18", "preactresnet18"])
def test_robustbenchs_own_class_loads_it_and_gives_the_same_logits(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "autoattack", pyautoattack)  # RobustBench imports it by its old name
    pytest.importorskip("robustbench", reason="needs RobustBench: pip install robustbench==1.1.1 'setuptools<80'")
    model, made = create_model(name, 100).eval(), {}
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    exec(robustbench_class(name, 100)[1], made)
    theirs = made["model"].eval()
    theirs.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-6, atol=1e-6)


def test_a_complete_evaluation_is_a_leaderboard_claim(tmp_path):
    line, info, card, state = export(tmp_path, run={"extra_data": ""})
    assert line == f"RobustBench: {tmp_path}/README.md (measured as the leaderboard asks)"
    assert info == {
        "link": None, "name": None, "authors": None, "additional_data": False, "number_forward_passes": 1,
        "dataset": "cifar100", "venue": None, "architecture": "WideResNet-10-1", "eps": "8/255", "clean_acc": "60.64",
        "reported": None, "autoattack_acc": "29.33", "footnote": None,
    }  # fmt: skip
    path = tmp_path / "models/cifar100/Linf/some-run.pt"
    exported = torch.load(path, weights_only=True)
    assert {key: list(tensor.shape) for key, tensor in exported.items()} == SHAPES["wrn-10-1"]
    assert all(torch.equal(exported[key], state[key]) for key in state)
    for figure in ("60.64%", "33.00%", "29.33%", "10,000 test images", "8/255", "one GPU", RESULT["command"]):
        assert figure in card
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card and "c" * 64 in card and "d" * 64 in card
    assert "no leaderboard claim" not in card
    assert "Still empty in the model_info file: `link`, `name`, `authors`, `venue`, `reported`." in card
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["README.md", "some-run.json", "some-run.pt"]


@pytest.mark.parametrize(
    ("changed", "gap", "clean", "robust"),
    [
        ({"n": 1000}, "1,000 of 10,000 test images were attacked", None, None),
        ({"epsilon": 0.01, "epsilon_text": "0.01"}, "epsilon was 0.01 and the leaderboard's is 8/255", "60.64", None),
        ({"precision": "bf16"}, "the attacks were computed in bf16", "60.64", None),
        ({"version": "dev"}, "the suite was dev, not standard", "60.64", None),
        ({"norm": "l2"}, "RobustBench has no leaderboard for cifar100 in l2", "60.64", None),
        ({"dataset": "digits", "n": 360}, "RobustBench has no leaderboard for digits in linf; 360 of", None, None),
    ],
)
def test_what_was_not_measured_is_left_out_and_said(tmp_path, changed, gap, clean, robust):
    line, info, card, _ = export(tmp_path, changed)
    assert "no leaderboard claim: " in line and gap in line and gap in card
    assert "**These figures are no leaderboard claim**" in card
    assert (info["clean_acc"], info["autoattack_acc"], info["additional_data"]) == (clean, robust, None)
    assert "`autoattack_acc`" in card and "`additional_data`" in card
    assert "29.33%" in card and f"{RESULT['n'] if 'n' not in changed else changed['n']:,} test images" in card


def test_the_epsilon_of_lbgat_is_listed_with_a_footnote(tmp_path):
    line, info, card, _ = export(tmp_path, {"epsilon_text": "0.031"}, {"extra_data": "synthetic.npz"})
    assert line.endswith("(measured as the leaderboard asks)") and info["autoattack_acc"] == "29.33"
    assert (info["eps"], info["footnote"]) == ("0.031", "Uses epsilon 0.031 instead of 8/255")
    assert info["additional_data"] is True and "epsilon 0.031" in card
    assert leaderboard_gaps({**RESULT, "dataset": "cifar10", "norm": "l2", "epsilon_text": "0.5"}) == []


def test_the_cards_code_is_the_exported_networks(tmp_path):
    code = re.search(r"```python\n(.*?)```", export(tmp_path)[2], re.DOTALL)[1]
    assert "WideResNet(depth=10, widen_factor=1, num_classes=100, sub_block1=False)" in code
    assert "from robustbench.model_zoo.architectures.wide_resnet import WideResNet\n" in code
    assert 'torch.load("models/cifar100/Linf/some-run.pt", weights_only=True)' in code
    compile(code, "card", "exec")


def test_the_card_shows_intervals_and_calls_dev_an_upper_bound(tmp_path):
    card = export(tmp_path, {"version": "dev", "attacks": ["apgd-ce", "apgd-t"], "n": 1000})[2]
    assert re.search(r"^\| none \(clean\) +\| +60\.64% \| 57\.5 to 63\.6 \|$", card, re.MULTILINE)  # 606 of 1,000
    assert "\nupper bound by AutoAttack dev: apgd-ce,apgd-t, linf, epsilon 8/255." in card
    assert "RobustBench's classes take images of 32 x 32 pixels" not in card
    assert "RobustBench's classes take images of 32 x 32 pixels" in export(tmp_path, {"dataset": "digits"})[2]


def test_nothing_in_the_card_is_read_as_markup(tmp_path):
    command = "python x ``` <b> \udcff\n```` y"
    card = export(tmp_path, {"command": command, "hardware": "<script>|*x*"})[2]
    assert "\n`````\npython x ``` <b> \\udcff\n```` y\n`````\n" in card
    assert r"\<script\>\|\*x\*" in card and "<script>" not in card


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "a/b", "a\0", "x y", "\udcff"])
def test_names_that_lead_out_of_the_export_are_refused(tmp_path, name):
    for run, dataset in ((name, "cifar100"), ("run", name)):
        target = LoadedModel(create_model("wrn-10-1", 100).eval(), "wrn-10-1", 100, "cifar100", {})
        with pytest.raises(UserError, match=r"--export: the (run|data set) .* letters, digits and \. _ \+ - only"):
            export_robustbench(tmp_path / "zoo", run, target, {**RESULT, "dataset": dataset})
    with pytest.raises(UserError, match="--export: the data set"):
        check_destinations(config(export=("robustbench", str(tmp_path))), "wrn-10-1", name)
    assert list(tmp_path.iterdir()) == []


def config(**kwargs):
    return EvalConfig(checkpoint="x.pt", **kwargs)


def test_errors_come_before_the_attacks(tmp_path):
    (tmp_path / "file").write_text("")
    for settings, model, sentence in [
        ({"export": ("onnx", "x")}, "wrn-10-1", "pass --export robustbench DIR or --export published DIR"),
        ({"export": ("robustbench", str(tmp_path))}, "resnet18-guide", "no class that computes what resnet18-guide"),
        ({"export": ("robustbench", str(tmp_path / "file/x"))}, "wrn-10-1", "cannot write to"),
        ({"save_adv": str(tmp_path / "file/x.npz")}, "wrn-10-1", "--save-adv"),
    ]:
        with pytest.raises(UserError, match=sentence):
            check_destinations(config(**settings), model, "digits")
    check_destinations(
        config(export=("robustbench", str(tmp_path)), save_adv=str(tmp_path / "x.npz")), "resnet18", "digits"
    )


def adversarial(norm, epsilon, n=7):
    """Test images, and adversarial ones on the rim of the ball; the last two are robust: the test images."""
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    step = torch.randn(x.shape)
    step = epsilon * (step.sign() if norm == "linf" else step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
    step[-2:] = 0
    return images, (x + step).clamp(0, 1).numpy()


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 8 / 255), ("linf", 0.031), ("l2", 0.5)])
def test_saved_adversarial_images(tmp_path, norm, epsilon):
    images, x_adv = adversarial(norm, epsilon)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).eval()
    rounded = torch.from_numpy(np.rint(x_adv * 255).astype(np.float32) / 255)
    prediction = net(torch.from_numpy(x_adv)).argmax(1).numpy()
    label = (prediction + np.array([1, 1, 1, 0, 0, 0, 0])) % 10
    path = tmp_path / "adv.npz"
    line = save_adversarial(path, net, suite(norm, epsilon, batch_size=3), x_adv, images, label, prediction)
    still = int((net(rounded).argmax(1).numpy() != label).sum())
    assert line == f"adversarial images: {path} (7 images, 3 misclassified; {still} when rounded to 8 bits)"
    with np.load(path, allow_pickle=False) as saved:
        np.testing.assert_array_equal(saved["x_adv"], x_adv)
        assert saved["x_adv"].dtype == np.float32 and saved["x_adv"].shape == (7, 3, 4, 4)
        np.testing.assert_array_equal(saved["label"], label)
        np.testing.assert_array_equal(saved["prediction"], prediction)
        assert saved["epsilon"] == epsilon and saved["norm"] == norm
    in_8_bits = np.rint(255 * x_adv).astype(np.uint8)
    np.testing.assert_array_equal(in_8_bits[-2:], images[-2:].transpose(0, 3, 1, 2))
    if norm == "linf":
        distance = np.abs(in_8_bits / 255 - images.transpose(0, 3, 1, 2) / 255).max()
        assert distance <= epsilon + (1e-9 if epsilon == 8 / 255 else 1 / 510)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_lies_outside_the_ball_is_not_saved(tmp_path, norm):
    images, x_adv = adversarial(norm, 0.1)
    images[4] = 128
    net, labels = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)), np.zeros(7, np.int64)
    for value in (128 / 255 + 0.1 + 2e-6, 1.5, np.nan):
        x_adv[4] = np.float32(128 / 255)
        x_adv[4, 0, 0, 0] = value
        with pytest.raises(UserError, match=r"test image 4 is not within epsilon 0\.1 and \[0, 1\]"):
            save_adversarial(tmp_path / "adv.npz", net, suite(norm, 0.1, batch_size=3), x_adv, images, labels, labels)
    assert not list(tmp_path.iterdir())
    x_adv[4, 0, 0, 0] = 128 / 255 + 0.1 + 0.5e-6  # as far as float32 may err
    save_adversarial(tmp_path / "adv.npz", net, suite(norm, 0.1, batch_size=3), x_adv, images, labels, labels)


def test_through_the_command_line(program, checkpoint, tmp_path):
    """The checks, the images and the export, before the verdict in the last line."""
    flags = ("--checkpoint", checkpoint, *QUICK, "--cross-checks", 1, "--mark", "run")
    adv, zoo = tmp_path / "adv.npz", tmp_path / "zoo"
    status, out, err = program(*flags, "--save-adv", adv, "--export", "robustbench", zoo)
    assert status == 0, err
    lines = out.splitlines()
    assert lines[-1].startswith("clean ")
    assert lines[-2].startswith(f"RobustBench: {zoo}/README.md (no leaderboard claim: ")
    assert lines[-3].startswith(f"adversarial images: {adv} (6 images, ")
    report = json.loads((tmp_path / "Logs/run/autoattack.json").read_text())
    assert [check["name"] for check in report["checks"]] == CHECKS
    assert [line for line in lines if line.startswith(("pass  ", "FAIL  "))] == [
        f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['detail']}" for check in report["checks"]
    ]
    with np.load(adv) as saved, np.load(tmp_path / "Logs/run/autoattack.npz") as arrays:
        np.testing.assert_array_equal(saved["label"], arrays["label"])
        np.testing.assert_array_equal(saved["prediction"], arrays["adversarial_prediction"])
        model = create_model("wrn-10-1", 10).eval()
        model.load_state_dict(torch.load(zoo / "models/digits/Linf/run.pt", weights_only=True))
        np.testing.assert_array_equal(model(torch.from_numpy(saved["x_adv"])).argmax(1), saved["prediction"])
    status, out, err = program(*flags, "--export", "onnx", zoo)
    assert (status, out) == (1, "") and err.startswith("error: --export onnx: pass --export robustbench DIR")


PLAIN_SCRIPT = """
import sys, torch
for path in sys.argv[1:]:
    content = torch.load(path, weights_only=True)
    state = content.get("student", content)
    assert all(type(key) is str and type(tensor) is torch.Tensor for key, tensor in state.items())
    print(state["conv1.weight"].shape[1], state["fc.weight"].shape[1])
assert not {"engine", "models", "datasets"} & set(sys.modules)
"""


def test_checkpoints_load_in_a_plain_script(tmp_path):
    """With torch alone, where our packages cannot be imported: all files of a run with every kind of state, and those
    that ship."""
    settings = {
        "dataset": "digits", "method": "ikl", "student": "wrn-10-1", "limit_train": 32, "batch_size": 16, "epochs": 1,
        "num_steps": 1, "eval_size": 8, "val_size": 24, "awp_gamma": 0.005, "awp_start_epoch": 1, "save_freq": 1,
        "average_every": "epoch", "device": "cpu", "mark": "run", "log_dir": str(tmp_path / "Logs"),
        "checkpoint_dir": str(tmp_path),
    }  # fmt: skip
    Trainer(TrainConfig(**settings)).fit()
    files = sorted((tmp_path / "run").glob("*.pt"))
    assert [path.name for path in files] == ["average-epoch001.pt", "best.pt", "last.pt", "student-epoch001.pt"]
    shipped = sorted((ROOT / "checkpoints").glob("*.pt"))
    command = [sys.executable, "-I", "-c", PLAIN_SCRIPT, *map(str, (*files, *shipped))]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[:4] == ["3 64"] * 4
