"""Exit 0 if this Python is new enough and has the packages of a requirements file, else say what lacks and exit 1."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OLDEST_PYTHON = (3, 10)
SUBSTITUTES = {"pyautoattack": "autoattack"}  # the authors' repository installs under this name


def release(text):
    """``2.14.1+cu130`` -> (2, 14, 1, 0)."""
    numbers = [int(n) for n in re.findall(r"\d+", text.split("+")[0])[:4]]
    return tuple(numbers + [0] * (4 - len(numbers)))


def lacking(path):
    """The requirements of the file (``name`` or ``name>=version`` a line, ``-r FILE``) that are not met."""
    missing = []
    for line in path.read_text().splitlines():
        requirement, _, comment = line.partition("#")
        requirement = requirement.strip()
        if not requirement or comment.strip().startswith("optional"):
            continue
        if requirement.startswith("-r "):
            missing += lacking(path.parent / requirement[3:].strip())
            continue
        name, _, bound = (part.strip() for part in requirement.partition(">="))
        if not installed(name, bound) and not (name in SUBSTITUTES and installed(SUBSTITUTES[name], "")):
            missing.append(requirement)
    return missing


def installed(name, bound):
    try:
        return release(version(name)) >= release(bound)
    except (PackageNotFoundError, TypeError):  # TypeError: half-removed, without a version
        return False


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        sys.exit("Python 3.10 or newer")
    missing = lacking(Path(sys.argv[1]))
    sys.exit(", ".join(missing) if missing else 0)
