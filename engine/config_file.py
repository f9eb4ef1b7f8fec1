"""A run's config.json as the settings of another run."""

import dataclasses
from pathlib import Path
from typing import Any

from losses import METHODS
from models.custom import is_custom
from utils.errors import UserError
from utils.files import read_json
from utils.options import flag
from utils.provenance import PROVENANCE

NOT_SETTINGS = {*PROVENANCE, "sources", "processes", "resume"}  # how and where the run was made


def read_config(path: str | Path, config: type, given: dict[str, Any]) -> dict[str, Any]:
    """The settings in a config.json, by name; the methods' own parameters are among them.

    Args:
        config: the dataclass whose fields they are.
        given: settings of the command line, which override the file's.

    Raises:
        UserError: no such file, not a config.json, a value of another type, or unnamed code of a user.
    """
    try:
        content = read_json(Path(path))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--config {path} cannot be read ({reason}): pass the config.json of a run") from error
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    left_out = NOT_SETTINGS | given.keys() | _other_parameters(content.get("method"), given)
    values = {}
    for name, value in content.items():
        if name in left_out:
            continue
        value = tuple(value) if isinstance(value, list) else value
        default = defaults.get(name, 0.0)  # what is no field is a parameter of a method
        fits = type(value) is type(default) or (type(default) is float and type(value) is int)
        if not fits:
            raise UserError(f"--config {path}: {name} is {str(value)[:40]!r}, not of the type of {flag(name)}")
        values[name] = value
    for name in ("student", "guide"):
        if is_custom(values.get(name, "")):
            raise UserError(
                f"--config {path} names {values[name]}, whose code runs only if you name it: "
                f"add {flag(name)} {values[name]}"
            )
    return values


def _other_parameters(method: Any, given: dict[str, Any]) -> set[str]:
    """The methods' parameters that are not the run's: earlier versions wrote those of all methods, and another --method
    has its own defaults."""
    parameters = {name: {p.name for p in objective.parameters} for name, objective in METHODS.items()}
    own = parameters.get(method, set()) if given.get("method", method) == method else set()
    return set().union(*parameters.values()) - own
