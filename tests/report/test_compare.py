"""Several evaluations in one table and one picture, and what is refused."""

import json
import os

import pytest
from matplotlib.image import imread

import eval_autoattack
from report import plots
from report.compare import compare
from report.read import read_report
from tests.helpers import ROOT
from utils.errors import UserError, run_program


@pytest.fixture
def save(make_result, tmp_path):
    """Save a report in a folder of this name."""

    def call(name, **changes):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "autoattack.json").write_text(json.dumps(make_result(n=50, **changes)))
        return folder

    return call


@pytest.fixture
def compared(markdown_tables, tmp_path):
    """Read the table in compare.md, without its head."""
    return lambda: markdown_tables((tmp_path / "out" / "compare.md").read_text())[0][1:]


def test_compare(save, compared, tmp_path):
    a = save("a", clean_accuracy=60.0, robust_accuracy=30.0)
    b = save("b", clean_accuracy=100.0, robust_accuracy=0.0, model="resnet18")
    out = compare([str(a), str(b / "autoattack.json")], tmp_path / "out")
    settings = ["digits", "50", "linf", "0.1", "AutoAttack", "fp32"]
    assert compared() == [
        ["a", "wrn-10-1", *settings, "60.00%", "46.2 to 72.4", "30.00%", "19.1 to 43.8"],
        ["b", "resnet18", *settings, "100.00%", "92.9 to 100.0", "0.00%", "0.0 to 7.1"],
    ]
    assert "Warning" not in out and "60.00%" in out and str(tmp_path / "out" / "compare.png") in out
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Warning" not in text and "](compare.png)" in text
    with_curves = imread(tmp_path / "out" / "compare.png").shape
    changed = json.loads((a / "autoattack.json").read_text())
    del changed["curve"]
    (a / "autoattack.json").write_text(json.dumps(changed))
    compare([str(a), str(b)], tmp_path / "out")
    assert imread(tmp_path / "out" / "compare.png").shape[0] < with_curves[0] / 2  # no curve for all: none


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"epsilon": 8 / 255, "epsilon_text": "8/255"}, "epsilon"),
        ({"norm": "l2"}, "norm"),
        ({"dataset": "cifar10"}, "data set"),
        ({"version": "dev", "attacks": ["apgd-ce", "apgd-t"]}, "suite"),
        ({"version": "custom", "attacks": ["square"], "dataset": "cifar10"}, "data set, suite"),
        ({"data_sha256": "c" * 64}, "the pixels or labels of the images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_the_same_measurement_is_said(save, tmp_path, changes, told, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "plot_comparison", lambda reports, file: drawn.extend(reports))
    out = compare([str(save("a")), str(save("b", **changes))], tmp_path / "out")
    sentence = f"Warning: not the same measurement, these differ: {told}."
    assert sentence in out.splitlines() and sentence in (tmp_path / "out" / "compare.md").read_text()
    if told == "epsilon":
        assert drawn == ["a (epsilon 0.1)", "b (epsilon 8/255)"]
    if told == "data set, suite":
        assert drawn[1] == "b (data set cifar10, suite upper bound by AutoAttack custom: square)"


def test_upper_bounds_are_named_in_table_and_picture_though_nothing_differs(save, compared, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "plot_comparison", lambda reports, file: drawn.extend(reports))
    dev = {"version": "dev", "attacks": ["apgd-ce", "apgd-t"]}
    assert "Warning" not in compare([str(save("a", **dev)), str(save("b", **dev))], tmp_path / "out")
    name = "upper bound by AutoAttack dev: apgd-ce,apgd-t"
    assert drawn == [f"a (suite {name})", f"b (suite {name})"] and [row[6] for row in compared()] == [name, name]


def test_evaluations_of_one_folder_have_names_of_their_own(save, compared, tmp_path):
    folder = save("a")
    (folder / "autoattack-2.json").write_text((folder / "autoattack.json").read_text())
    compare([str(folder), str(folder / "autoattack-2.json"), str(folder)], tmp_path / "out")
    names = [row[0] for row in compared()]
    assert names == [str(folder / "autoattack.json"), str(folder / "autoattack-2.json")]


def test_compare_from_the_command_line_with_reports_of_before(compared, tmp_path, capsys):
    """Those under results/ were written before the report had intervals or classes; no checkpoint is needed."""
    runs = ("quickstart-digits", "quickstart-digits-natural", "lbgat6-cifar100-wrn10-1")
    argv = ["--log-dir", str(tmp_path), "--mark", "out", "--compare", *[str(ROOT / "results" / run) for run in runs]]
    eval_autoattack.main(argv)
    assert "these differ: data set, epsilon." in capsys.readouterr().out
    for run, row in zip(runs, compared(), strict=True):
        figures = json.loads((ROOT / "results" / run / "autoattack.json").read_text())
        assert row[-4] == f"{figures['clean_accuracy']:.2f}%" and row[-2] == f"{figures['robust_accuracy']:.2f}%"
    assert not (tmp_path / "compare.md").exists()


def test_compare_without_matplotlib(save, compared, tmp_path, no_matplotlib):
    out = compare([str(save("a"))], tmp_path / "out")
    assert "matplotlib is not installed" in out and len(compared()) == 1
    assert "matplotlib is not installed" in (tmp_path / "out" / "compare.md").read_text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compare.md"]


def test_names_that_are_not_utf8_are_compared(save, tmp_path):
    out = compare([str(save("a", model="wrn\udcff"))], tmp_path / "out")
    assert "wrn\\udcff" in out and "wrn\\udcff" in (tmp_path / "out" / "compare.md").read_text()
    assert "could not be drawn" not in out  # the picture shows no networks


POINT = {"epsilon": 0.1, "clean_accuracy": 70.0, "robust_accuracy": 40.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 3},
        {"norm": None},
        {"n": 0},
        {"n": True},
        {"n": 50.0},
        {"n": 10**400},
        {"attacks": "square"},
        {"attacks": []},
        {"attacks": [["square"]]},
        {"version": {}},
        {"clean_accuracy": "60%"},
        {"clean_accuracy": True},
        {"robust_accuracy": 100.5},
        {"robust_accuracy": float("nan")},
        {"robust_accuracy": 10**400},
        {"curve": 3},
        {"curve": []},
        {"curve": {"epsilon": 0.1}},
        {"curve": [3]},
        {"curve": [{**POINT, "epsilon": float("inf")}]},
        {"curve": [{**POINT, "epsilon": "0.1"}]},
        {"curve": [{**POINT, "robust_accuracy": None}]},
    ],
    ids=str,
)
def test_a_report_with_a_wrong_value_is_refused(save, changes):
    path = save("a") / "autoattack.json"
    (key,) = changes
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"is not a report of eval_autoattack\.py \({key} is missing or invalid\)"):
        read_report(path)


@pytest.mark.parametrize("key", ["model", "dataset", "data_sha256", "n", "epsilon_text", "version", "robust_accuracy"])
def test_a_report_without_a_value_is_refused(save, key):
    path = save("a") / "autoattack.json"
    content = json.loads(path.read_text())
    assert read_report(path) == content
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{key} is missing"):
        read_report(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1, 2]", b"null", b'{"n": ', b"\xff\xfe\x00", b"[" * 100_000, b'{"n": ' * 100_000, b"9" * 5000],
    ids=lambda content: repr(content[:8]),
)
def test_what_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is not a report of eval_autoattack\.py .*: pass the autoattack"):
        read_report(tmp_path / "a.json")


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for name in ("none.json", "loop", "dangling", "a\0b"):
        with pytest.raises(UserError, match=r"cannot read|embedded null byte"):
            compare([str(tmp_path / name)], tmp_path / "out")
    for name in (tmp_path / "fifo", "/dev/zero"):
        with pytest.raises(UserError, match=r"cannot read .*it is no regular file"):
            compare([str(name)], tmp_path / "out")
    monkeypatch.setattr("utils.files.LARGEST_JSON", 10)
    (tmp_path / "large.json").write_text("{}" + " " * 10)
    with pytest.raises(UserError, match="not JSON: it is larger than"):
        read_report(tmp_path / "large.json")
    assert list((tmp_path / "out").iterdir()) == []


def test_errors_are_one_sentence(save, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_program(lambda: eval_autoattack.main(["--log-dir", str(tmp_path), "--compare", "none.json"]))
    assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder with --log-dir"):
        compare([str(save("good"))], tmp_path / "file" / "out")
