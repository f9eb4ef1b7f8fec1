"""Who may import whom: docs/architecture.md as a test."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What each room may import besides itself and packages; a sub-room that is not listed follows its parent.
MAY_IMPORT = {
    "utils": set(),
    "models": {"utils"},
    "datasets": {"utils"},
    "attacks": {"utils"},
    "losses": {"utils"},
    "report": {"utils"},
    "engine/steps": {"models", "attacks", "losses", "utils"},
    "engine": {"models", "datasets", "attacks", "losses", "utils", "engine/steps"},
    "evaluation/autoattack": {"models", "utils"},
    "evaluation": {"models", "datasets", "attacks", "report", "utils", "evaluation/autoattack"},
}
COMPUTES_WHAT_IT_DRAWS = {"report/figures.py": {"attacks", "datasets", "models", "utils"}}
PROGRAMS = {
    "train_lbgat.py": {"engine", "utils"},
    "eval_autoattack.py": {"evaluation", "utils"},
}


def files_of(room: str) -> list[Path]:
    return [p for p in sorted((ROOT / room).rglob("*.py")) if room_of(p.relative_to(ROOT).as_posix()) == room]


def room_of(path: str) -> str | None:
    """The innermost listed room of a file or dotted module written as a path."""
    parts = path.removesuffix(".py").split("/")
    for depth in (2, 1):
        if "/".join(parts[:depth]) in MAY_IMPORT and (depth < len(parts) or not path.endswith(".py")):
            return "/".join(parts[:depth])
    return None


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, as a path."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.replace(".", "/") for name in found}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room):
    files = files_of(room)
    assert files
    for path in files:
        rooms = {room_of(name) for name in imported(path)} - {None, room}
        may = COMPUTES_WHAT_IT_DRAWS.get(path.relative_to(ROOT).as_posix(), MAY_IMPORT[room])
        assert rooms <= may, f"{path.relative_to(ROOT)} imports {rooms - may}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_is_wiring(program):
    path = ROOT / program
    rooms = {(room_of(name) or "").split("/")[0] for name in imported(path)} - {""}
    assert rooms <= PROGRAMS[program]
    assert len(path.read_text().splitlines()) < 40


def test_nobody_imports_benchmarks_results_or_tests():
    for room in MAY_IMPORT:
        for path in files_of(room):
            assert not {name.split("/")[0] for name in imported(path)} & {"benchmarks", "results", "tests"}, path


def test_rooms_and_files_stay_small():
    lines = {room: sum(len(p.read_text().splitlines()) for p in files_of(room)) for room in MAY_IMPORT}
    assert max(lines.values()) < 0.25 * sum(lines.values()), lines
    files = [path for room in MAY_IMPORT for path in files_of(room)]
    files += [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "results").glob("*.py")]
    assert not [path for path in files if len(path.read_text().splitlines()) > 300]


def test_no_folder_hides_the_authors_package():
    assert not (ROOT / "autoattack").exists() and not (ROOT / "pyautoattack").exists()


def test_no_test_imports_another():
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert not [name for name in imported(path) if name.startswith("tests/") and "/test_" in name], path
