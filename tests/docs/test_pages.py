"""README.md, docs/ and the other pages: links, command lines and flags are those of the repository."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from engine.command_line import parse_train
from evaluation.config import parse_eval
from results.records import read_recipe
from tests.helpers import ROOT

PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("results/*/README.md")]
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)", without_code(page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[list[str]]:
    """The command lines of a page's bash blocks, in words."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def is_help(flags: list[str]) -> bool:
    return flags == ["--help"]


def check_program(program: str, flags: list[str]) -> None:
    """The program exists and its own parser takes the flags."""
    assert (ROOT / program).exists(), program
    if is_help(flags):
        return
    if program == "sh/train_slurm.sh" and flags[0].endswith(".sh"):
        return check_program(flags[0], flags[1:])
    if program in ("train_lbgat.py", "sh/train_slurm.sh"):
        parse_train(flags)
    elif program == "eval_autoattack.py" or Path(program).name.startswith("eval_autoattack"):
        parse_eval(flags)
    elif program.startswith("sh/train_"):
        parse_train([*read_recipe(ROOT / program).flags, *flags])


def check_module(module: str, flags: list[str]) -> None:
    """The module exists and its source names the flags; ``benchmarks.cost`` takes those of training."""
    if module == "pytest":
        return
    spec = find_spec(module)
    assert spec and spec.origin, module
    if module == "benchmarks.cost":
        parse_train(flags)
    else:
        source = Path(spec.origin).read_text()
        assert all(f'"{flag}"' in source for flag in flags if flag.startswith("--")), (module, flags)


def check(words: list[str]) -> None:
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    match words:
        case ["python", "-m", module, *flags]:
            check_module(module, flags)
        case ["python" | "bash", program, *flags] if program.endswith((".py", ".sh")) and "benchmarks/" not in program:
            check_program(program, flags)
        case ["torchrun" | "sbatch", *words]:
            at = next(i for i, word in enumerate(words) if word.endswith((".py", ".sh")))
            check_program(words[at], words[at + 1 :])
        case ["pip", "install", "-r", path]:
            assert (ROOT / path).exists()
        case ["bash", "benchmarks/gpu.sh" | "benchmarks/two_hosts.sh"] | ["python3", "-m", "venv", ".venv"]:
            pass
        case ["source", ".venv/bin/activate"] | ["ruff", "check" | "format", "."]:
            pass
        case _:
            raise AssertionError(f"no check for the command {shlex.join(words)}")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_exist(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_command_lines_are_accepted(page: Path):
    for words in commands(page):
        check(words)


def test_commands_are_found():
    """The two programs and the three kinds of script are among them."""
    found = {word for words in commands(ROOT / "README.md") for word in words}
    assert {"train_lbgat.py", "sh/train_lbgat0_cifar100.sh", "sh/eval_autoattack.sh", "sh/quickstart.sh"} <= found


@pytest.mark.parametrize("words", ["python train_lbgat.py --no-such-flag", "bash sh/no_such_script.sh", "make all"])
def test_wrong_commands_are_noticed(words: str):
    with pytest.raises(Exception, match=r"no-such-flag|no_such_script|make all"):
        check(words.split())


def test_flags_in_the_prose_exist(capsys):
    sources = [path.read_text() for room in ("benchmarks", "results") for path in (ROOT / room).glob("*.py")]
    known = {"--help", "--pairing", *re.findall(r'"(--[a-z][a-z-]*)"', "".join(sources))}
    for parse in (parse_train, parse_eval):
        with pytest.raises(SystemExit):
            parse(["--help"])
        known |= set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    for page in PAGES:
        for name in set(re.findall(r"`(--[a-z][\w-]*)", without_code(page.read_text()))):
            assert name in known, (page.name, name)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_in_the_prose_exist(page: Path):
    text = page.read_text()
    for path in re.findall(r"`((?:sh|benchmarks|tests|docs|losses|engine|models|datasets)/[\w/]+\.\w+)`", text):
        placeholder = path == "losses/alp.py" or re.search(r"[A-Z]", Path(path).stem)
        assert placeholder or (ROOT / path).exists(), path
    for module in re.findall(r"`python -m ((?:benchmarks|results)\.\w+)", text):
        assert find_spec(module), module


def test_python_example_runs(monkeypatch, capsys):
    """The example of docs/evaluation.md, with fewer images and one attack."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/evaluation.md").read_text(), re.DOTALL | re.MULTILINE)
    for old, new in (("[:100]", "[:10]"), ("epsilon=0.1)", 'epsilon=0.1, version="custom", attacks=["apgd-ce"])')):
        assert old in code
        code = code.replace(old, new)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "docs/evaluation.md", "exec"), {})
    clean, robust, shape = capsys.readouterr().out.split(maxsplit=2)
    assert 80 <= float(clean) <= 100 and float(robust) <= float(clean) and shape == "torch.Size([10, 3, 16, 16])\n"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 150
