"""The scripts of sh/: flags are passed on, and the environment is set up or the reason why not is one sentence."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from engine.command_line import parse_train
from evaluation.config import parse_eval
from tests.helpers import ROOT

SCRIPTS = sorted((ROOT / "sh").glob("*.sh"))


def write_program(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """Stands in for a Python that has every package; it prints any other command instead of running it."""
    return write_program(
        tmp_path / "stub python", 'case $1 in sh/check_requirements.py) exit 0;; esac\nprintf "%s\\n" "$@"\n'
    )


def run(script: Path, *args: str, **env: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "VIRTUAL_ENV", "CONDA_PREFIX")}
    return subprocess.run([str(script), *args], env=kept | env, capture_output=True, text=True, cwd="/", timeout=60)


def arguments(stub: Path, script: str, *args: str) -> list[str]:
    done = run(ROOT / "sh" / script, *args, PYTHON=str(stub))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_is_bash_and_runs(script: Path):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert script.name.startswith("_") or os.access(script, os.X_OK)


def test_flags_of_the_user_win(stub: Path):
    own = ["--epsilon", "8/255", "--mark", "mine", "--data-dir", "a b"]
    flags = arguments(stub, "train_lbgat6_cifar100_wrn34_10.sh", *own)
    config = parse_train(flags[1:])
    assert (config.epsilon, config.mark, config.data_dir) == (8 / 255, "mine", "a b")
    assert (config.epochs, config.student) == (100, "wrn-34-10")


@pytest.mark.parametrize("script", ["train_lbgat0_cifar100.sh", "eval_autoattack.sh"])
def test_in_several_processes(stub: Path, script: str):
    flags = ["--checkpoint", "a b"] if script.startswith("eval") else []
    alone = arguments(stub, script, *flags)
    done = run(ROOT / "sh" / script, *flags, PYTHON=str(stub), NPROC="4")
    assert done.returncode == 0, done.stderr
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert done.stdout.splitlines() == torchrun + alone


@pytest.mark.parametrize(
    ("own", "method"), [([], "lbgat"), (["--method", "natural", "--mark", "q"], "natural"), (["--method=at"], "at")]
)
def test_quickstart_of_another_method_has_no_beta(stub: Path, own: list[str], method: str):
    lines = arguments(stub, "quickstart.sh", *own)
    flags = lines[1 : next(i for i, line in enumerate(lines) if line.startswith("curves: "))]
    config = parse_train(flags)
    assert (config.dataset, config.method, config.epochs) == ("digits", method, 40)
    assert ("--beta" in flags) == (method == "lbgat")


# -- the environment -------------------------------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of sh/, the requirements files and a script that prints which Python it was given."""
    root = tmp_path / "some checkout"
    (root / "Logs").mkdir(parents=True)
    shutil.copytree(ROOT / "sh", root / "sh")
    for name in ("requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, root)
    text = '. "$(dirname "${BASH_SOURCE[0]}")/_env.sh" requirements.txt\necho "$PYTHON"\n'
    (root / "sh" / "which.sh").write_text("#!/usr/bin/env bash\n" + text)
    (root / "sh" / "which.sh").chmod(0o755)
    return root


TOOLS = ("awk", "bash", "cat", "chmod", "df", "dirname", "env", "grep", "mkdir", "rm", "sh", "sleep", "tail")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A PATH folder with the tools of any system, and no Python."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool))
    return tools


# A Python without packages; its venvs' pip does what $PIP says.
BASE = """
case "$1 $2" in
    "-c "*|"- "*) exit 0;;
    "-V "*) echo Python 3.11.0; exit 0;;
    "-m venv") mkdir -p .venv/bin; cat >.venv/bin/python <<'EOF'
#!/bin/sh
case "$1 $2" in
    "-c "*) exit 0;;
    "-m pip") eval "$PIP";;
    *) [ -e .venv/installed ];;
esac
EOF
    chmod +x .venv/bin/python;;
    *) exit 1;;
esac
"""


def test_no_python(checkout: Path, bare: Path):
    done = run(checkout / "sh" / "which.sh", PATH=str(bare))
    assert done.returncode == 1
    assert done.stderr == "error: Python 3.10 or newer is needed and not found: install it, or set PYTHON to one\n"


def test_no_venv_module(checkout: Path, bare: Path):
    write_program(bare / "python3", 'case "$1 $2" in *ensurepip*) exit 1;; "-c "*) exit 0;; esac; exit 1\n')
    done = run(checkout / "sh" / "which.sh", PATH=str(bare))
    assert done.returncode == 1
    assert done.stderr.startswith("error: python3 lacks the venv module") and done.stderr.count("\n") == 1


def test_present_python_is_used_as_it_is(checkout: Path, stub: Path):
    done = run(checkout / "sh" / "which.sh", PYTHON=str(stub))
    assert (done.stdout, done.stderr) == (f"{stub}\n", "")
    assert not (checkout / ".venv").exists()


def test_sets_up_once(checkout: Path, bare: Path):
    write_program(bare / "python3", BASE)
    env = {"PATH": str(bare), "PIP": "echo once >>pip-ran; : >.venv/installed"}
    first, second = (run(checkout / "sh" / "which.sh", **env) for _ in range(2))
    assert first.stderr == "setting up .venv (once, a few minutes) ... done\n"
    assert first.stdout == second.stdout == f"{checkout}/.venv/bin/python\n"
    assert second.stderr == ""
    assert (checkout / "pip-ran").read_text() == "once\n"


def test_two_set_ups_at_a_time_install_once(checkout: Path, bare: Path):
    locking = f'case "$1 $2" in "-c "*) exec "{sys.executable}" "$@";; esac\n'
    write_program(bare / "python3", locking + BASE)
    env = {"PATH": str(bare), "PIP": "echo begin >>pip-ran; sleep 1; echo end >>pip-ran; : >.venv/installed"}
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(run, checkout / "sh" / "which.sh", **env) for _ in range(2)]
    assert [job.result().returncode for job in jobs] == [0, 0]
    assert (checkout / "pip-ran").read_text() == "begin\nend\n"


def test_interrupted_set_up_is_completed(checkout: Path, bare: Path):
    write_program(bare / "python3", BASE)
    killed = run(checkout / "sh" / "which.sh", PATH=str(bare), PIP="kill -9 $PPID; sleep 0.2")
    assert killed.returncode != 0
    done = run(checkout / "sh" / "which.sh", PATH=str(bare), PIP=": >.venv/installed")
    assert done.returncode == 0 and done.stderr.endswith("done\n")


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("NewConnectionError ERROR: No matching distribution found for torch", "cannot reach the package index"),
        ("ERROR: No matching distribution found for torch>=2", "Python 3.11.0: ERROR: No matching distribution found"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("ERROR: something else", "ERROR: something else"),
    ],
)
def test_failed_set_up_says_why(checkout: Path, bare: Path, log: str, sentence: str):
    write_program(bare / "python3", BASE)
    done = run(checkout / "sh" / "which.sh", PATH=str(bare), PIP=f"echo '{log}' >&2; exit 1")
    progress, error = done.stderr.splitlines()
    assert done.returncode == 1 and progress.endswith("failed")
    assert error.startswith("error: ") and sentence in error and "(see Logs/setup.log" in error
    assert log in (checkout / "Logs" / "setup.log").read_text()


@pytest.mark.parametrize(
    ("requirement", "met"),
    [
        ("pytest>=7", True),
        ("pytest>=7  # comment", True),
        ("pytest>=999", False),
        ("no-such-package", False),
        ("no-such-package  # optional: nobody needs it", True),
        ("-r other.txt", False),
    ],
)
def test_check_requirements(tmp_path: Path, requirement: str, met: bool):
    (tmp_path / "other.txt").write_text("# nothing but\nno-such-package>=1\n")
    (tmp_path / "requirements.txt").write_text(requirement + "\n")
    command = [sys.executable, ROOT / "sh" / "check_requirements.py", tmp_path / "requirements.txt"]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode == 0) == met


@pytest.mark.parametrize(
    ("data", "shipped"), [("cifar100.npz", "lbgat6-short-cifar100-wrn16-2"), ("other.npz", "quickstart-digits")]
)
def test_evaluating_without_arguments_takes_what_ships(checkout: Path, stub: Path, data: str, shipped: str):
    (checkout / "data").mkdir()
    (checkout / "data" / data).touch()
    program, *flags = run(checkout / "sh" / "eval_autoattack.sh", PYTHON=str(stub)).stdout.splitlines()
    config = parse_eval(flags)
    assert (program, config.checkpoint) == ("eval_autoattack.py", f"checkpoints/{shipped}.pt")
    trained = torch.load(ROOT / config.checkpoint, weights_only=True)["config"]
    assert (config.epsilon, config.norm) == (trained["epsilon"], trained["norm"])
