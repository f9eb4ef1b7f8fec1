"""Where a result comes from: code, versions, hardware and command."""

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from utils.device import describe

# Beside the settings in config.json.
PROVENANCE = ("hardware", "processes", "threads", "versions", "commit", "dirty", "command")
NOT_INSTALLED = "not installed"
PACKAGES = ("torch", "torchvision", "numpy", "pyautoattack")


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python and of these packages, or of those that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in packages or PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = NOT_INSTALLED
    return found


def commit() -> dict[str, Any]:
    """The git commit of this code, and whether tracked files differ from it; both None outside of a git checkout."""

    def git(*args: str) -> str:
        root = Path(__file__).resolve().parent.parent
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def command() -> list[str]:
    """The command line, a program of this repository by its path within it."""
    root, program = Path(__file__).resolve().parent.parent, Path(sys.argv[0])
    inside = program.is_absolute() and program.is_relative_to(root)
    return [program.relative_to(root).as_posix() if inside else sys.argv[0], *sys.argv[1:]]


def provenance(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What config.json holds beside the settings; the hardware and threads are those of each process."""
    return {
        "hardware": f"{processes} x {describe(device)}" if processes > 1 else describe(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        **commit(),
        "command": command(),
    }
