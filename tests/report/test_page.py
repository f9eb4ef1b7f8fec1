"""The pages of an evaluation and the comparison of several: whole, escaped, and with the right figures."""

import base64
import importlib.util
import json
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text

import eval_autoattack
from evaluation import summary as report
from evaluation.autoattack.suite import STANDARD
from report import plots
from report.compare import compare
from report.markup import Code, Picture, Table, html_page, markdown
from report.page import write_pages
from tests.helpers import ROOT, verdicts
from utils.errors import UserError, run_program

EVIL = "<script>alert(1)</script>|`*_x_*`$&amp;"


def result(num_classes=10, n=200, version="standard", attacks=STANDARD, **changes):
    """What autoattack.json holds after an evaluation of made-up verdicts, at three epsilons."""
    labels, clean, broken_by = verdicts(n, num_classes)
    names = [f"class {k}" for k in range(num_classes)]
    accuracies, left = {}, 100.0
    for name in ("clean", *attacks):
        left -= 100 * float(np.mean(broken_by == name))
        accuracies[name] = left
    seconds = {**dict.fromkeys(("clean", *attacks), 2.0), "total": 2.0 * (1 + len(attacks))}
    after = {name: accuracies[name] for name in attacks}
    return {
        "checkpoint_sha256": "a" * 64, "data_sha256": "b" * 64, "model": "wrn-10-1", "num_classes": num_classes,
        "dataset": "digits", "split": "test", "n": n, "norm": "linf", "epsilon": 0.1, "epsilon_text": "0.1",
        "version": version, "attacks": list(attacks), "seed": 1, "batch_size": 250, "claim": report.claim(version),
        "versions": {"python": "3.11", "torch": "2.14"}, "clean_accuracy": accuracies["clean"],
        "accuracy_after": after, "robust_accuracy": accuracies[attacks[-1]], "seconds": seconds,
        "throughput": report.throughput(attacks, broken_by, seconds),
        "per_class": report.per_class(names, labels, clean, broken_by == ""), "precision": "fp32", "processes": 1,
        "warnings": [], "checkpoint": "checkpoints/a run/last.pt", "hardware": "a machine",
        "command": "python eval_autoattack.py --checkpoint 'checkpoints/a run/last.pt'", "date": "2026-11-22T16:20:21",
        "curve": [
            {"epsilon": e, "epsilon_text": report.format_epsilon(e), "clean_accuracy": 70.0, "robust_accuracy": r,
             "accuracy_after": dict.fromkeys(attacks, r), "seconds": 3.0}
            for e, r in ((0, 70.0), (0.1, 40.0), (0.2, 12.5))
        ],
        **changes,
    }  # fmt: skip


class Page(HTMLParser):
    """A page read strictly: every tag is closed in order, nothing is fetched; collects text, pictures and tables."""

    VOID = ("meta", "img", "!doctype")

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.pictures, self.tables = [], "", [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe")
        attrs = dict(attrs)
        assert not {"href", "srcset", "data"} & attrs.keys()
        if tag == "img":
            kind, data = attrs["src"].split(",")
            assert kind == "data:image/png;base64" and attrs["alt"] and int(attrs["width"]) > 100
            self.pictures.append(base64.b64decode(data, validate=True))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data


def markdown_tables(text):
    """Every table as rows of cells, unescaped; a pipe that is not escaped separates two."""
    tables = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()]
            assert len({len(row) for row in rows}) == 1 and all(re.fullmatch(r" -+:? ", cell) for cell in rows[1])
            del rows[1]
            tables.append([[re.sub(r"\\(.)", r"\1", cell.strip()) for cell in row] for row in rows])
    return tables


def read(folder):
    return Page((folder / "report.html").read_text()), (folder / "report.md").read_text()


@pytest.mark.parametrize("num_classes", [2, 10, 130])
def test_both_pages_tell_the_same_and_hold_the_same_pictures(tmp_path, num_classes):
    random = np.random.default_rng(0)
    x = random.random((2, 3, 8, 8), np.float32)
    plots.plot_triples(x, x + np.float32(0.1), "ab", "cd", ["apgd-ce"] * 2, tmp_path / "adversarial.png")
    expected = result(num_classes, n=20 * num_classes)
    line = write_pages(tmp_path, expected)
    assert str(tmp_path / "report.html") in line and str(tmp_path / "report.md") in line
    page, text = read(tmp_path)
    assert page.tables == markdown_tables(text) and len(page.tables) == 5
    names = re.findall(r"!\[.+\]\((.+)\)", text)
    assert names == ["curve.png", "classes.png", "adversarial.png"]
    assert page.pictures == [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        height, width, _ = plt.imread(tmp_path / name).shape
        assert 150 < height < 2400 and 600 < width < 1400
    for told_by in (page.text, re.sub(r"\\(.)", r"\1", text)):
        assert report.last_line(expected).replace("  ", " ") in " ".join(told_by.split())
        for told in ("standard AutoAttack", "0.1 (linf)", "a" * 64, "b" * 64, "torch 2.14", expected["command"]):
            assert told in told_by
        assert "gradient masking" not in told_by and "gave no warning" in told_by
        assert ("Drawn are 100 of 130 classes" in told_by) == (num_classes == 130)


def test_tables_have_the_figures(tmp_path):
    expected = result(12, 60)
    write_pages(tmp_path, expected)
    _, attacks, curve, classes, _ = read(tmp_path)[0].tables
    assert [row[0] for row in attacks[1:]] == ["clean", *STANDARD, "total"]
    assert attacks[2] == ["apgd-ce", f"{expected['accuracy_after']['apgd-ce']:.2f}%", "2.0",
                          f"{60 * expected['clean_accuracy'] / 100 / 2:.1f}"]  # fmt: skip
    assert curve[1:] == [
        [epsilon, "70.00%", *[robust] * 4, "3.0"]
        for epsilon, robust in (("0", "70.00%"), ("0.1", "40.00%"), ("0.2", "12.50%"))
    ]
    robust = [float(row[3].rstrip("%")) for row in classes[1:]]
    assert len(robust) == 12 and robust == sorted(robust)
    assert {row[0]: row[1:] for row in classes[1:]} == {
        of["name"]: [str(of["n"]), f"{of['clean_accuracy']:.2f}%", f"{of['robust_accuracy']:.2f}%"]
        for of in expected["per_class"]
    }


def test_classes_without_an_image_come_last_and_are_not_drawn(tmp_path):
    few = result(100, 30)
    empty = sum(of["n"] == 0 for of in few["per_class"])
    write_pages(tmp_path, few)
    classes = read(tmp_path)[0].tables[3]
    assert len(classes) == 101 and empty > 50
    assert all(row[1:] == ["0", "–", "–"] for row in classes[-empty:]) and "–" not in classes[-empty - 1]
    assert f"Drawn are {100 - empty} of 100 classes" in read(tmp_path)[1]
    assert plt.imread(tmp_path / "classes.png").shape[0] < 0.2 * 160 * 50  # not the height of 100 classes


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, not saved."""
    drawn = []
    monkeypatch.setattr(plots, "_save", lambda figure, file: drawn.append(figure))
    yield drawn
    plt.close("all")


def texts(figure):
    """Every text of a figure, of which nothing may be cut off at its edge."""
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()  # of all that is drawn
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible()]


LONG = "an exceedingly-long $name$ of_something that nobody should have given"


@pytest.mark.parametrize("num_classes", [2, 10, 26, 100])
def test_picture_of_the_classes(figures, num_classes):
    random = np.random.default_rng(0)
    classes = [
        {
            "name": f"{LONG if k % 2 else 'class'} {k}",
            "n": 3,
            "clean_accuracy": float(c),
            "robust_accuracy": float(c / 2),
        }
        for k, c in enumerate(random.uniform(0, 100, num_classes - 1))
    ]
    classes.append({"name": "all", "n": 3, "clean_accuracy": 100.0, "robust_accuracy": 100.0})
    plots.plot_classes(classes, None)
    (figure,) = figures
    labels = texts(figure)
    bars = [bar.get_width() for axes in figure.axes for bar in axes.patches]
    assert bars == [of[key] for of in classes for key in ("clean_accuracy", "robust_accuracy")]
    assert len(figure.axes) == (1 if num_classes <= 25 else 2)
    for of in classes:
        assert f"{of['clean_accuracy']:.0f} / {of['robust_accuracy']:.0f}" in labels
    assert [label for label in labels if label.startswith(("class", "an exc", "all"))] == [
        "all" if k == num_classes - 1 else "an exceedingly-long…" if k % 2 else f"class {k}" for k in range(num_classes)
    ]


def test_picture_of_the_images_with_long_names(figures):
    x = np.zeros((2, 3, 8, 8), np.float32)
    plots.plot_triples(x, x + np.float32(0.1), ["$\\frac$", LONG], ["b", LONG], ["apgd-ce", "square"], None)
    assert {"label: $\\frac$", "taken for b", "found by square", "difference × 5"} <= set(texts(figures[0]))


@pytest.mark.parametrize("models", [1, 2, 9])
def test_picture_of_several_evaluations(figures, models):
    reports = {f"{LONG} {k}": result(n=50, clean_accuracy=100.0, robust_accuracy=40.0 + k) for k in range(models)}
    plots.plot_comparison(reports, None)
    labels = texts(figures[0])
    assert labels.count("100.00") == models and all(f"{40 + k}.00" in labels for k in range(models))
    assert [" ".join(label.split()) for label in labels].count(f"{LONG} 0") == 2  # beside its bars and in the legend
    (curve, *others) = figures[0].axes[1].lines
    assert len(others) == models - 1
    np.testing.assert_allclose(curve.get_xydata(), [[0, 70], [0, 70], [25.5, 40], [51, 12.5]])  # clean; the curve


def test_dev_says_that_it_is_an_upper_bound(tmp_path):
    write_pages(tmp_path, result(version="dev", attacks=STANDARD[:2]))
    for text in (read(tmp_path)[0].text, read(tmp_path)[1]):
        assert "An UPPER BOUND and not the standard AutoAttack: only apgd-ce, apgd-t ran." in text
        assert "upper bound by AutoAttack dev" in text
    write_pages(tmp_path, result(version="custom", attacks=("square",)))
    assert "Not the standard AutoAttack but its version custom: square." in read(tmp_path)[0].text


def test_doubts_come_first(tmp_path):
    checks = [{"name": "noise", "passed": True, "detail": "1% < 2%"}, {"name": "large epsilon", "passed": False,
              "detail": "5.00% at 128/255"}]  # fmt: skip
    write_pages(tmp_path, result(checks=checks, warnings=["Square Attack has decreased it"]))
    page, text = read(tmp_path)
    for told_by in (page.text, text):
        start = told_by[: told_by.index("Accuracy after each attack")]
        assert "FAILED check for gradient masking: large epsilon (5.00% at 128/255)" in start
        assert "Warning of the suite: Square Attack has decreased it" in start and "noise" not in start
    assert ["pass", "noise", "1% < 2%"] in page.tables[-2] and ["FAIL", "large epsilon", checks[1]["detail"]] in (
        page.tables[-2]
    )


def test_names_are_escaped(tmp_path):
    changes = {key: EVIL for key in ("checkpoint", "dataset", "model", "hardware", "command", "epsilon_text")}
    evil = result(**changes, warnings=[EVIL], checks=[{"name": EVIL, "passed": False, "detail": EVIL}])
    evil["per_class"][3]["name"] = EVIL
    folder = tmp_path / "<b>&amp;"
    folder.mkdir()
    write_pages(folder, evil)
    page, text = read(folder)  # which would meet a script
    assert page.tables == markdown_tables(text)
    assert page.text.count(EVIL) >= 11
    prose = re.sub(r"^```\n.*?\n```$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"(?<!\\)[*`$]|(?<!\\)<(?!/?details>|/?summary>)", prose)
    assert f"\n```\n{EVIL}\n```\n" in text


def test_code_with_fences_stays_code():
    assert "````\na ``` b\n````" in markdown("t", [("h", [Code("a ``` b")])])


def test_blocks():
    table = Table(["name", "n"], [["a|b", "1"], ["c", "–"]], summary="a <fold>")
    sections = [("h", ["one\ntwo", table, Picture("p.png", b"\x89PNG" + b"\0" * 12 + b"\0\0\3\0", 'a "p"')])]
    assert markdown("t", sections) == (
        "# t\n\n## h\n\none two\n\n<details><summary>a &lt;fold&gt;</summary>\n\n"
        '| name |   n |\n| ---- | --: |\n| a\\|b |   1 |\n| c    |   – |\n\n</details>\n\n![a "p"](p.png)\n'
    )
    page = html_page("t", sections)
    assert '<td>a|b</td><td class="number">1</td>' in page and "a &lt;fold&gt;" in page
    assert 'width="460"' in page and 'alt="a &quot;p&quot;"' in page  # 768 pixels at 160 per inch


@pytest.fixture
def no_matplotlib(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name))


def test_without_matplotlib_the_tables_are_there(tmp_path, no_matplotlib):
    write_pages(tmp_path, result())
    page, text = read(tmp_path)
    assert page.pictures == [] and "![" not in text and len(page.tables) == 5
    assert "matplotlib is not installed" in page.text and "matplotlib is not installed" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


# -- several evaluations ---------------------------------------------------------------------------------------------


def save(folder, **changes):
    folder.mkdir()
    (folder / "autoattack.json").write_text(json.dumps({**result(n=50), **changes}))
    return folder


def compared(tmp_path):
    """The first table in compare.md, without its head."""
    return markdown_tables((tmp_path / "out" / "compare.md").read_text())[0][1:]


def test_compare(tmp_path):
    a = save(tmp_path / "a", clean_accuracy=60.64, robust_accuracy=29.334)
    b = save(tmp_path / "b", clean_accuracy=100.0, robust_accuracy=0.0, model="resnet18")
    out = compare([str(a), str(b / "autoattack.json")], tmp_path / "out")
    assert compared(tmp_path) == [
        ["a", "wrn-10-1", "digits", "50", "linf", "0.1", "AutoAttack", "60.64%", "29.33%"],
        ["b", "resnet18", "digits", "50", "linf", "0.1", "AutoAttack", "100.00%", "0.00%"],
    ]
    assert "Warning" not in out and "60.64%" in out and str(tmp_path / "out" / "compare.png") in out
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Warning" not in text and "](compare.png)" in text
    with_curves = plt.imread(tmp_path / "out" / "compare.png").shape
    changed = json.loads((a / "autoattack.json").read_text())
    del changed["curve"]
    (a / "autoattack.json").write_text(json.dumps(changed))
    compare([str(a), str(b)], tmp_path / "out")
    assert plt.imread(tmp_path / "out" / "compare.png").shape[0] < with_curves[0] / 2  # no curve for all: none


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"epsilon": 8 / 255, "epsilon_text": "8/255"}, "epsilon"),
        ({"norm": "l2"}, "norm"),
        ({"n": 51}, "images"),
        ({"dataset": "cifar10"}, "data set"),
        ({"version": "dev", "attacks": ["apgd-ce", "apgd-t"]}, "suite"),
        ({"version": "dev", "attacks": ["apgd-ce", "apgd-t"], "n": 51}, "images, suite"),
        ({"data_sha256": "c" * 64}, "the pixels or labels of the images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_the_same_measurement_is_said(tmp_path, changes, told, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "plot_comparison", lambda reports, file: drawn.extend(reports))
    out = compare([str(save(tmp_path / "a")), str(save(tmp_path / "b", **changes))], tmp_path / "out")
    sentence = f"Warning: not the same measurement, these differ: {told}."
    assert sentence in out.splitlines() and sentence in (tmp_path / "out" / "compare.md").read_text()
    if told == "epsilon":
        assert drawn == ["a (epsilon 0.1)", "b (epsilon 8/255)"]
    if told == "images, suite":
        assert drawn[1] == "b (images 51, suite upper bound by AutoAttack dev: apgd-ce,apgd-t)"


def test_evaluations_of_one_folder_have_names_of_their_own(tmp_path):
    folder = save(tmp_path / "a")
    (folder / "autoattack-2.json").write_text((folder / "autoattack.json").read_text())
    compare([str(folder), str(folder / "autoattack-2.json"), str(folder)], tmp_path / "out")
    names = [row[0] for row in compared(tmp_path)]
    assert names == [str(folder / "autoattack.json"), str(folder / "autoattack-2.json")]


def test_compare_from_the_command_line_with_reports_of_before(tmp_path, capsys):
    """Those under results/ were written before the report had a claim or classes; no checkpoint is needed."""
    runs = ("quickstart-digits", "quickstart-digits-natural", "lbgat6-cifar100-wrn10-1")
    argv = ["--log-dir", str(tmp_path / "out"), "--compare", *[str(ROOT / "results" / run) for run in runs]]
    eval_autoattack.main(argv)
    assert "these differ: data set, epsilon." in capsys.readouterr().out
    for run, row in zip(runs, compared(tmp_path), strict=True):
        figures = json.loads((ROOT / "results" / run / "autoattack.json").read_text())
        assert row[-2:] == [f"{figures['clean_accuracy']:.2f}%", f"{figures['robust_accuracy']:.2f}%"]


def test_compare_without_matplotlib(tmp_path, no_matplotlib):
    out = compare([str(save(tmp_path / "a"))], tmp_path / "out")
    assert "matplotlib is not installed" in out and len(compared(tmp_path)) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compare.md"]


def test_compare_refuses_what_is_no_report(tmp_path, capsys):
    (tmp_path / "torn.json").write_text(json.dumps(result())[:100])
    (tmp_path / "foreign.json").write_text('{"clean_accuracy": 3.0}')
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    save(tmp_path / "text", robust_accuracy="29%")
    save(tmp_path / "good")
    for name, sentence in [
        ("none.json", "cannot read"), ("", "cannot read"), ("torn.json", "is no report"), ("list.json", "is no report"),
        ("foreign.json", "is no report"), ("binary.json", "is no report"), ("text", "is no report"),
    ]:  # fmt: skip
        with pytest.raises(UserError, match=sentence) as error:
            compare([str(tmp_path / "good"), str(tmp_path / name)], tmp_path / "out")
        assert "pass the autoattack.json of" in str(error.value) and "\n" not in str(error.value)
        assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(SystemExit):
        run_program(lambda: eval_autoattack.main(["--log-dir", str(tmp_path), "--compare", "none.json"]))
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(UserError, match="choose another folder with --log-dir"):
        compare([str(tmp_path / "good")], tmp_path / "torn.json" / "out")
