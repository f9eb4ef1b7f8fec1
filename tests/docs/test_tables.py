"""The tables of README.md and docs/: up to date, and made of the records as they should be."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.cost import step_gflop
from results.benchmark_tables import NO_RUNS
from results.build_tables import build, pages
from results.records import Records
from results.tables import TABLES
from tests.helpers import ROOT
from utils.errors import UserError

PAGES = pages()
RECIPE, SHORT = "lbgat0-cifar100-wrn34-10", "lbgat0-short-cifar100-resnet18"


def plain_link(target: Path, text: str) -> str:
    return f"[{text}]"


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_tables_are_up_to_date(page: Path):
    assert build(page.read_text(), page, Records()) == page.read_text(), "run python -m results.build_tables"


def test_every_table_is_on_a_page():
    text = "".join(page.read_text() for page in PAGES)
    assert all(f"<!-- table:{name} -->" in text for name in TABLES)


# -- from records of runs that never took place ------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with the scripts, published.csv and the costs, and no runs."""
    shutil.copytree(ROOT / "sh", tmp_path / "sh")
    for name in ("recipe-cost", "train-step-h100"):
        shutil.copytree(ROOT / "results" / name, tmp_path / "results" / name)
    shutil.copy(ROOT / "results" / "published.csv", tmp_path / "results")
    return tmp_path


def add_run(root: Path, name: str, recipe: str, reports: int = 1, **changes):
    folder = root / "results" / name
    folder.mkdir()
    config = {**Records(root).recipes[recipe].config.as_dict(), "hardware": "a machine", **changes}
    (folder / "config.json").write_text(json.dumps(config))
    epoch = {"epoch": 100, "student_clean": 71.234, "student_robust": 31.0, "robust_images": 1000, "split": "test"}
    (folder / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    for i in range(reports):
        report = {
            "clean_accuracy": 70.126, "robust_accuracy": 27.0 - i, "epsilon": (0.031, 8 / 255)[i],
            "epsilon_text": ("0.031", "8/255")[i], "n": 10000, "version": "standard", "attacks": [],
            "hardware": "another machine", "checkpoint": "checkpoints/x/" + ("last.pt", "student-epoch091.pt")[i],
        }  # fmt: skip
        (folder / f"autoattack{'-2' * i}.json").write_text(json.dumps(report))


def rows(root: Path, table: str, *words: str) -> list[list[str]]:
    """The cells of the table's rows that contain all the words."""
    lines = TABLES[table](Records(root), plain_link).splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells for cells in found if all(word in cells for word in words)]


def test_nothing_measured(root: Path):
    (row,) = rows(root, "recipes", "[train_lbgat0_cifar100.sh]")
    assert row[1:5] == ["LBGAT0", "CIFAR-100", "WRN-34-10", "70.25 / 27.16 at 0.031"] and row[-1] == ""
    assert TABLES["runs"](Records(root), plain_link) == NO_RUNS
    assert TABLES["status"](Records(root), plain_link).startswith("None of the 33 recipes with a published figure has")


def test_published_beside_measured(root: Path):
    add_run(root, RECIPE, RECIPE, reports=2, seed=5, device="cuda", precision="bf16")
    (row,) = rows(root, "recipes", "[train_lbgat0_cifar100.sh]")
    assert row[-1] == "[70.13 / 27.00 at 0.031, 10,000 images], [70.13 / 26.00 at 8/255, 10,000 images]"
    first, second = rows(root, "headline", "CIFAR-100", "LBGAT0", "WRN-34-10")
    assert first[3:] == ["0.031", "70.25 / 27.16", "[70.13 / 27.00]", "100", "10,000", "26.1 to 27.9"]
    assert second[3:] == [
        "8/255",
        "",
        "[70.13 / 26.00]",
        "100",
        "10,000",
        "25.1 to 26.9",
    ]  # published at another epsilon
    assert TABLES["status"](Records(root), plain_link).startswith("1 of the 33 recipes with a published figure has")
    first, second = rows(root, "runs", f"[{RECIPE}]")
    assert first[5:9] == ["70.13 / 27.00 at 0.031", "10,000", "26.1 to 27.9", "last epoch, not chosen"]
    assert second[5:9] == ["70.13 / 26.00 at 8/255", "10,000", "25.1 to 26.9", "epoch 91, not chosen"]


def test_a_run_with_other_settings_reproduces_nothing(root: Path):
    add_run(root, RECIPE, RECIPE, epochs=99)
    (row,) = rows(root, "recipes", "[train_lbgat0_cifar100.sh]")
    assert row[-1] == ""
    (row,) = rows(root, "runs", f"[{RECIPE}]")
    assert row[3:5] == ["100 of all images", "71.23 / 31.00 at 0.031 (1,000 test images)"]


def test_a_shorter_recipe_has_no_published_figure(root: Path):
    add_run(root, SHORT, SHORT)
    (row,) = rows(root, "headline", "LBGAT0 in 30 epochs")
    assert row[3:] == ["0.031", "", "[70.13 / 27.00]", "100", "10,000", "26.1 to 27.9"]
    assert f"with a shorter schedule: [{SHORT}]" in TABLES["status"](Records(root), plain_link)


def test_a_run_that_was_not_attacked(root: Path):
    add_run(root, "tiny", RECIPE, reports=0, student="wrn-10-1", limit_train=20000)
    (row,) = rows(root, "runs", "[tiny]")
    assert row[2:4] == ["WRN-10-1", "100 of 20,000 images"] and row[-5:] == ["", "", "", "", "a machine"]


def test_every_published_figure_is_in_exactly_one_table():
    records = Records()
    recipes = [row for recipe in records.recipes.values() if (row := records.published_row(recipe))]
    others = TABLES["others"](records, plain_link).splitlines()[2:]
    assert len(recipes) == 33 and len(recipes) + len(others) == len(records.published) == 60


# -- costs -------------------------------------------------------------------------------------------------------------

FORWARD, GUIDE, RESNET18 = 13.318, 3.527, 1.111  # GFLOP of one forward pass


def gflop() -> dict[str, float]:
    return json.loads((ROOT / "results" / "recipe-cost" / "gflop.json").read_text())


def test_every_recipe_has_a_cost():
    assert gflop().keys() == Records().recipes.keys(), "run python -m results.count_flops"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lbgat6-cifar100-wrn34-10", 27 * FORWARD + 3 * GUIDE),
        ("lbgat0-cifar100-wrn34-10", 25 * FORWARD + 3 * GUIDE),
        ("trades6-cifar100-wrn34-10", 28 * FORWARD),
        ("at-cifar100-wrn34-10", 23 * FORWARD),
        ("mart6-cifar100-wrn34-10", 26 * FORWARD),
        ("mart5-cifar100-resnet18", 26 * RESNET18),
        ("at-awp-cifar100-wrn34-10", 26 * FORWARD),
        ("ikl-cifar100-wrn34-10", 23 * FORWARD),
        ("ikl-autoaugment-cifar100-wrn34-10", 2 * 23 * FORWARD),
        ("free-cifar10-wrn34-10", 8 * 3 * FORWARD),
        ("fgsm-rs-cifar100-preactresnet18", 5 * RESNET18),
        ("rice-cifar100-preactresnet18", 25 * RESNET18),
        ("bs10-cifar100-wrn34-10", 11 * FORWARD),
        ("hat-cifar10-resnet18", 31 * RESNET18),
        ("dajat-cifar100-wrn34-10", (3 * 17 + 6) * FORWARD),
    ],
)
def test_cost_in_forward_passes(name: str, expected: float):
    """Of the student: 1 for the clean logits where the attack uses them, 2 per attack step, 3 per trained pass, 1 per
    pass without gradient; weight perturbation runs the trained passes twice. Of the guide: 3."""
    assert gflop()[name] == pytest.approx(expected, rel=0.01, abs=0.6)


COUNTED = ["lbgat6-short-cifar100-resnet18", "mart5-cifar10-resnet18", "yopo5-cifar10-preactresnet18-yopo"]


@pytest.mark.parametrize("name", [*COUNTED, "free-cifar10-preactresnet18", "hat-cifar10-resnet18"])
def test_cost_is_counted(name: str):
    assert gflop()[name] == round(step_gflop(Records().recipes[name].config), 2)


def test_hours_are_flops_over_the_measured_rate(root: Path):
    (row,) = rows(root, "recipes", "[train_lbgat6_cifar100_wrn34_10.sh]")
    rate = json.loads((root / "results/train-step-h100/wrn-34-10-batch128.json").read_text())["gflops_per_second"]
    assert row[5:7] == ["370", f"{50_000 * 100 * 370.16 / rate / 3600:.1f}"]


# -- markers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["<!-- table:nonsense -->\n<!-- /table -->", "<!-- table:runs -->"])
def test_wrong_markers(text: str):
    with pytest.raises(UserError, match=r"page\.md: unknown tables"):
        build(text, ROOT / "page.md", Records())


def test_build_changes_only_what_is_between_the_markers(root: Path):
    text = "before\n<!-- table:runs -->\nold\nlines\n<!-- /table -->\nafter\n"
    built = build(text, root / "README.md", Records(root))
    assert built == f"before\n<!-- table:runs -->\n{NO_RUNS}\n<!-- /table -->\nafter\n"


def test_links_are_relative_to_the_page(root: Path):
    text = "<!-- table:recipes -->\n<!-- /table -->"
    assert "](sh/train_lbgat0_cifar100.sh)" in build(text, root / "README.md", Records(root))
    assert "](../sh/train_lbgat0_cifar100.sh)" in build(text, root / "docs" / "recipes.md", Records(root))


@pytest.mark.parametrize("name", ["lbgat6-short-cifar100-wrn16-2", "quickstart-digits"])
def test_every_network_that_ships_is_in_the_table(name):
    found, reports = rows(ROOT, "shipped", f"[{name}]"), Records().runs[name].reports
    assert len(found) == max(1, len(reports))
    for cells, report in zip(found, reports, strict=False):
        assert cells[3].startswith(f"{report['clean_accuracy']:.2f} / {report['robust_accuracy']:.2f} at")
