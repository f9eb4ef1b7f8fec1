"""The pages of an evaluation: whole, escaped, and with the right figures."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.image import imread

from report import plots
from report.page import result_line, result_table, suite_name, write_pages
from tests.helpers import ROOT
from utils.statistics import accuracy_interval

STANDARD = ["apgd-ce", "apgd-t", "fab-t", "square"]
EVIL = "<script>alert(1)</script>|`*_x_*`$&amp;"

SCRIPT = (ROOT / "report" / "templates" / "report.js").read_text()


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
        assert tag not in ("link", "iframe") and (tag != "script" or not attrs)
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
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data
        if self.open and self.open[-1] == "script":
            assert data.strip() == SCRIPT.strip()
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] == "style":
            assert "url(" not in data and "@import" not in data


@pytest.fixture
def read(markdown_tables):
    """Read both pages of a folder, which must hold the same tables; -> the HTML page and the Markdown text."""

    def call(folder):
        page, text = Page((folder / "report.html").read_text()), (folder / "report.md").read_text()
        tables = [rows if any(rows[0]) else rows[1:] for rows in markdown_tables(text)]  # HTML needs no empty head
        assert page.tables == tables
        return page, text

    return call


def plain(text):
    """Markdown or HTML text on one line, without escapes."""
    return " ".join(re.sub(r"\\([^a-zA-Z0-9])", r"\1", text).split())


@pytest.mark.parametrize("num_classes", [2, 10, 130])
def test_both_pages_tell_the_same_and_hold_the_same_pictures(tmp_path, make_result, read, num_classes):
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    plots.plot_triples(x, x + np.float32(0.1), "ab", "cd", ["apgd-ce"] * 2, tmp_path / "adversarial.png")
    result = make_result(num_classes, n=20 * num_classes)
    line = write_pages(tmp_path, result)
    assert str(tmp_path / "report.html") in line and str(tmp_path / "report.md") in line
    page, text = read(tmp_path)
    assert len(page.tables) == 5
    names = re.findall(r"!\[.+\]\((.+)\)", text)
    assert names == ["curve.png", "classes.png", "adversarial.png"]
    assert page.pictures == [(tmp_path / name).read_bytes() for name in names]
    for name in names:
        height, width, _ = imread(tmp_path / name).shape
        assert 150 < height < 2400 and 600 < width < 1400
    for told_by in (plain(page.text), plain(text)):
        assert plain(result_line(result)) in told_by
        for told in ("Standard AutoAttack", "0.1 (linf)", "a" * 64, "b" * 64, "torch 2.14", result["command"]):
            assert told in told_by
        assert "gradient masking" not in told_by and "The suite gave no warning." in told_by
        shown = "The picture shows the 100 of 130 classes with the lowest robust accuracy."
        assert (shown in told_by) == (num_classes == 130)


def test_tables_have_the_figures(tmp_path, make_result, read):
    result = make_result(12, 80)
    write_pages(tmp_path, result)
    overview, attacks, curve, classes, _ = read(tmp_path)[0].tables
    low, high = accuracy_interval(result["robust_accuracy"], 80)
    assert ["robust accuracy", f"{result['robust_accuracy']:.2f}% (95% interval {low:.1f} to {high:.1f})"] in overview
    assert [row[0] for row in attacks] == ["attack", "none (clean)", *STANDARD, "total"]
    accuracy = result["accuracy_after"]["apgd-ce"]
    low, high = accuracy_interval(accuracy, 80)
    speed = 80 * result["clean_accuracy"] / 100 / 2
    assert attacks[2] == ["apgd-ce", f"{accuracy:.2f}%", f"{low:.1f} to {high:.1f}", "2.0", f"{speed:.1f}"]
    assert attacks[-1] == ["total", "–", "–", "10.0", "8.0"]
    assert curve == [
        ["epsilon", "clean", *STANDARD, "95% interval", "seconds"],
        ["0", "70.00%", *["70.00%"] * 4, "59.2 to 78.9", "3.0"],
        ["0.1", "70.00%", *["40.00%"] * 4, "30.0 to 51.0", "3.0"],
        ["0.2", "70.00%", *["12.50%"] * 4, "6.9 to 21.5", "3.0"],
    ]
    robust = [float(row[4].rstrip("%")) for row in classes[1:]]
    assert len(robust) == 12 and robust == sorted(robust)
    assert {row[0]: [row[1], row[2], row[4]] for row in classes[1:]} == {
        entry["name"]: [str(entry["n"]), f"{entry['clean_accuracy']:.2f}%", f"{entry['robust_accuracy']:.2f}%"]
        for entry in result["per_class"]
    }
    assert "| none (clean) |" in result_table(result) and f"| {accuracy:.2f}% |" in plain(result_table(result))


def test_classes_without_an_image_come_last_and_are_not_drawn(tmp_path, make_result, read):
    few = make_result(100, 30)
    empty = sum(entry["n"] == 0 for entry in few["per_class"])
    write_pages(tmp_path, few)
    page, text = read(tmp_path)
    classes = page.tables[3]
    assert len(classes) == 101 and empty > 50
    assert all(row[1:] == ["0", *"––––"] for row in classes[-empty:]) and "–" not in classes[-empty - 1]
    assert f"The picture shows the {100 - empty} of 100 classes that have images." in plain(text)
    assert imread(tmp_path / "classes.png").shape[0] < 0.2 * 160 * 50  # not the height of 100 classes


@pytest.mark.parametrize(
    ("version", "attacks", "name", "sentence"),
    [
        ("standard", STANDARD, "AutoAttack", "Standard AutoAttack (Croce and Hein 2020)"),
        ("plus", ["apgd-dlr", *STANDARD], "AutoAttack plus", "so it is at least as strong"),
        ("rand", ["apgd-ce", "apgd-dlr"], "AutoAttack rand, for randomized networks", "for randomized networks"),
        ("dev", STANDARD[:2], "upper bound by AutoAttack dev: apgd-ce,apgd-t", "UPPER BOUND, not the standard"),
        ("custom", ["square"], "upper bound by AutoAttack custom: square", "UPPER BOUND, not the standard"),
        ("of another program", ["square"], "upper bound by AutoAttack of another program: square", "UPPER BOUND"),
    ],
)
def test_only_the_standard_suite_is_not_called_an_upper_bound(
    tmp_path, make_result, read, version, attacks, name, sentence
):
    result = make_result(version=version, attacks=attacks)
    assert suite_name(result) == name and f"({name}, epsilon 0.1, 200 images, robust ±" in result_line(result)
    write_pages(tmp_path, result)
    page, text = read(tmp_path)
    for told_by in (plain(page.text), plain(text)):
        assert name in told_by and sentence in told_by and ", ".join(attacks) in told_by


def test_result_line():
    result = {"version": "standard", "attacks": STANDARD, "epsilon_text": "8/255"}
    small = {**result, "clean_accuracy": 98.0, "robust_accuracy": 78.0, "n": 100}
    assert result_line(small) == ("clean 98.00%  robust 78.00%  (AutoAttack, epsilon 8/255, 100 images, robust ±9.1)")
    large = {**result, "clean_accuracy": 60.64, "robust_accuracy": 29.33, "n": 10_000}
    assert result_line(large) == "clean 60.64%  robust 29.33%  (AutoAttack, epsilon 8/255, 10000 images)"


def test_doubts_come_first(tmp_path, make_result, read):
    checks = [
        {"name": "noise", "passed": True, "detail": "1% < 2%"},
        {"name": "large epsilon", "passed": False, "detail": "5.00% at 128/255"},
    ]
    write_pages(tmp_path, make_result(checks=checks, warnings=["Square Attack has decreased it"]))
    page, text = read(tmp_path)
    for told_by in (plain(page.text), plain(text.replace("**", ""))):
        start = told_by[: told_by.index("Accuracy after each attack")]
        assert "FAILED check for gradient masking: large epsilon (5.00% at 128/255)" in start
        assert "Warning of the suite: Square Attack has decreased it" in start and "noise" not in start
    rows = [["pass", "noise", "1% < 2%"], ["FAIL", "large epsilon", "5.00% at 128/255"]]
    assert page.tables[-2] == [["result", "check", "details"], *rows]


def test_names_are_escaped(tmp_path, make_result, read):
    changes = {key: EVIL for key in ("checkpoint", "dataset", "model", "hardware", "command", "epsilon_text")}
    evil = make_result(**changes, warnings=[EVIL], checks=[{"name": EVIL, "passed": False, "detail": EVIL}])
    evil["per_class"][3]["name"] = EVIL
    folder = tmp_path / "<b>&amp;"
    folder.mkdir()
    write_pages(folder, evil)
    page, text = read(folder)  # which would meet a script
    assert page.text.count(EVIL) >= 11
    prose = re.sub(r"^```\n.*?\n```$", "", text, flags=re.DOTALL | re.MULTILINE).replace("**", "")  # bold is ours
    assert not re.search(r"(?<!\\)[*`$]|(?<!\\)<(?!/?details>|/?summary>)", prose)
    assert f"\n```\n{EVIL}\n```\n" in text


def test_names_that_are_not_utf8_do_not_end_the_program(tmp_path, make_result, read):
    result = make_result(checkpoint="checkpoints/\udcff.pt", command="python x \udcff.pt", warnings=["a \udcff"])
    result["per_class"][0]["name"] = "\ud800"
    write_pages(tmp_path, result)
    page, text = read(tmp_path)
    for told_by in (page.text, plain(text)):
        assert "checkpoints/\\udcff.pt" in told_by and "python x \\udcff.pt" in told_by and "\\ud800" in told_by


def test_reports_of_earlier_versions_can_be_written(tmp_path, make_result, read):
    old = make_result()
    for key in ("throughput", "per_class", "warnings", "curve", "processes", "precision"):
        del old[key]
    write_pages(tmp_path, old)
    page, text = read(tmp_path)
    assert len(page.tables) == 3 and page.tables[1][1][-1] == "–"
    assert "warning" not in text and "![" not in text


def test_a_picture_that_cannot_be_drawn_is_replaced_by_a_sentence(tmp_path, make_result, read, monkeypatch):
    def fail(*_):
        raise RuntimeError("no <font>")

    monkeypatch.setattr(plots, "plot_classes", fail)
    write_pages(tmp_path, make_result())
    page, text = read(tmp_path)
    assert "classes.png could not be drawn: RuntimeError: no <font>." in page.text
    assert r"classes.png could not be drawn: RuntimeError: no \<font\>." in text
    assert len(page.pictures) == 1 and "](curve.png)" in text and "](classes.png)" not in text


def test_without_matplotlib_the_tables_are_there(tmp_path, make_result, read, no_matplotlib):
    write_pages(tmp_path, make_result())
    page, text = read(tmp_path)
    assert page.pictures == [] and "![" not in text and len(page.tables) == 5
    for told_by in (page.text, text):
        for name in ("classes.png", "curve.png"):
            assert f"{name} could not be drawn: matplotlib is not installed (pip install matplotlib)." in told_by
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_the_table_of_classes_is_sortable_and_no_other(make_result, tmp_path):
    """Its headings become buttons by a script in the page."""
    write_pages(tmp_path, make_result(num_classes=30))
    html = (tmp_path / "report.html").read_text()
    assert html.count('<table class="sortable">') == 1 and html.count(SCRIPT.strip()) == 1
    assert html.index("<details>") < html.index('<table class="sortable">') < html.index("</details>")
    assert 'class="columns"' in html and 'src="http' not in html and "<script src" not in html
    write_pages(tmp_path, make_result(num_classes=10))
    assert 'class="columns"' not in (tmp_path / "report.html").read_text()  # a phone shows a single column of bars
