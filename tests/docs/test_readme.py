"""The README: its tables are up to date, its example of a new method trains, what it names exists."""

import json
import re
import shutil

import pytest

from engine.config import TrainConfig, parse_train
from engine.trainer import Trainer
from losses import METHODS
from results.build_tables import NO_RUNS, build, read_recipes, results_table, small_table
from tests.helpers import ROOT
from utils.errors import UserError

README = (ROOT / "README.md").read_text()


def test_tables_are_up_to_date():
    assert build(README) == README, "run python results/build_tables.py"


def test_files_that_it_names_exist():
    for path in re.findall(r"(?:sh|benchmarks|results|tests)/\w+\.(?:sh|py)", README):
        assert (ROOT / path).exists(), path


def test_flags_that_it_names_exist(capsys):
    help_text = ""
    for program in ("train_lbgat", "eval_autoattack"):
        from engine import command_line

        with pytest.raises(SystemExit):
            (command_line.parse_train if program == "train_lbgat" else command_line.parse_eval)(["--help"])
        help_text += capsys.readouterr().out
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    for name in set(re.findall(r"`(--[a-z-]+)", prose)) - {"--help"}:
        assert re.search(rf"{name}\b", help_text), name


# -- the example of a new method -------------------------------------------------------------------------------------


def example():
    (code,) = re.findall(r"<!-- example:method -->\n```python\n(.*?)```\n<!-- /example -->", README, flags=re.DOTALL)
    return code


def test_example_of_a_method_trains(tmp_path, monkeypatch, capsys):
    code = example()
    assert len(code.splitlines()) < 30
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    monkeypatch.setitem(METHODS, "alp", names["ALP"])
    config = TrainConfig(
        method="alp", beta=0.5, student="wrn-10-1", device="cpu", epochs=2, batch_size=16, limit_train=48, val_size=16,
        eval_size=16, num_steps=2, mark="alp", log_dir=str(tmp_path / "logs"), checkpoint_dir=str(tmp_path / "weights"),
        awp_gamma=0.005, average_every="epoch",
    )  # fmt: skip
    Trainer(config).fit()
    epochs = [json.loads(line) for line in (tmp_path / "logs" / "alp" / "metrics.jsonl").read_text().splitlines()]
    assert len(epochs) == 2 and epochs[1]["terms"].keys() == {"ce", "pairing"}
    assert epochs[1]["terms"]["ce"] > 0 and epochs[1]["terms"]["pairing"] > 0
    assert Trainer(config).epoch == 3  # the checkpoint goes on
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    assert names["ALP"].source in capsys.readouterr().out


# -- the tables ------------------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """A repository with the scripts and published.csv, and no runs."""
    shutil.copytree(ROOT / "sh", tmp_path / "sh")
    (tmp_path / "results").mkdir()
    shutil.copy(ROOT / "results" / "published.csv", tmp_path / "results")
    return tmp_path


def add_run(root, name, recipe, reports=1, **changes):
    import dataclasses

    folder = root / "results" / name
    folder.mkdir()
    config = {**dataclasses.asdict(read_recipes(root)[recipe].config), "hardware": "a machine", **changes}
    (folder / "config.json").write_text(json.dumps(config))
    epoch = {"epoch": 100, "student_clean": 71.234, "student_robust": 31.0, "robust_images": 1000, "split": "test"}
    (folder / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    for i in range(reports):
        report = {
            "clean_accuracy": 70.126, "robust_accuracy": 27.0 - i, "epsilon": (0.031, 8 / 255)[i],
            "epsilon_text": ("0.031", "8/255")[i], "n": 10000,
            "version": "standard", "attacks": [], "hardware": "another machine",
            "checkpoint": "checkpoints/x/" + ("last.pt", "student-epoch091.pt")[i],
        }  # fmt: skip
        (folder / f"autoattack{'-2' * i}.json").write_text(json.dumps(report))


def row_of(table, name):
    return [line for line in table.splitlines() if f"[{name}]" in line]


RECIPE = "lbgat0-cifar100-wrn34-10"


def test_nothing_measured(root):
    (row,) = row_of(results_table(root), RECIPE)
    assert "| 70.25 / 27.16 at 0.031 | not reproduced yet | – | – | – |" in row
    assert small_table(root) == NO_RUNS


def test_published_beside_measured(root):
    add_run(root, RECIPE, RECIPE, reports=2, seed=5, device="cuda", precision="bf16")
    first, second = row_of(results_table(root), RECIPE)
    measured = f"[70.13 / 27.00 at 0.031](results/{RECIPE}) | 10000 | last epoch, not chosen | another machine |"
    assert f"| 70.25 / 27.16 at 0.031 | {measured}" in first
    assert "[70.13 / 26.00 at 8/255]" in second and "| epoch 91, not chosen |" in second
    assert small_table(root) == NO_RUNS


def test_a_run_with_other_settings_reproduces_nothing(root):
    add_run(root, RECIPE, RECIPE, epochs=99)
    (row,) = row_of(results_table(root), RECIPE)
    assert "not reproduced yet" in row
    assert "| 100 of all images | 71.23 / 31.00 at 0.031 (1000 test images) |" in small_table(root)


def test_small_runs(root):
    add_run(root, "tiny", RECIPE, reports=0, student="wrn-10-1", limit_train=20000)
    (row,) = row_of(small_table(root), "tiny")
    assert "| WRN-10-1 | 100 of 20000 images |" in row and row.endswith("| – | – | – | a machine |")


@pytest.mark.parametrize("text", ["<!-- table:nonsense -->\n<!-- /table -->", "<!-- table:small -->"])
def test_wrong_markers(text):
    with pytest.raises(UserError, match=r"README\.md"):
        build(text)


def test_build_changes_only_what_is_between_the_markers(root):
    text = "before\n<!-- table:small -->\nold\nlines\n<!-- /table -->\nafter\n"
    assert build(text, root) == f"before\n<!-- table:small -->\n{NO_RUNS}\n<!-- /table -->\nafter\n"
