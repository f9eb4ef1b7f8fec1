"""Networks of a user's own: ``my_net.py:MyNet`` or ``package.module:factory``, called with ``num_classes``.

Loading one runs its code. Nothing but a name that the user has typed may therefore come here: a checkpoint's may not.
"""

import hashlib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from utils.errors import UserError, first_line


@dataclass(frozen=True)
class Source:
    """Attributes:
    factory: called with ``num_classes=C``; returns the network.
    sha256: of the source file that was run, hexadecimal; of a package's network, of the file that defines it.
    """

    factory: Callable[..., nn.Module]
    sha256: str


NO_GRADIENT = "has no gradient, which all attacks but square need: leave torch.no_grad and detach out of its forward"
IN_PLACE = "changes the images that it is given, in place: write x = x - mean, not x -= mean, in its forward"


def is_custom(name: str) -> bool:
    """Whether the name of a network is of the form FILE.py:NAME or MODULE:NAME."""
    return ":" in name


def short_name(name: str) -> str:
    """``nets/my_net.py:MyNet`` -> ``my_net-MyNet``, for names of runs and folders; other names stay as they are."""
    if not is_custom(name):
        return name
    source, _, attribute = name.rpartition(":")
    return re.sub(r"[^\w.+-]+", "-", f"{Path(source).name.removesuffix('.py')}-{attribute}")


@cache
def load_source(name: str) -> Source:
    """Run the source file, or import the module, once; return the factory in it.

    Raises:
        UserError: no such file, module or name, or its code raises an error.
    """
    source, _, attribute = name.rpartition(":")
    if not source or not attribute:
        raise UserError(f"network {name[:80]!r}: write FILE.py:NAME or MODULE:NAME, e.g. my_net.py:MyNet")
    try:
        module, digest = _run_file(Path(source)) if source.endswith(".py") else (_import(source), None)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise UserError(f"{source} cannot be loaded ({_describe(error)}): correct it, or the path") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise UserError(
            f"{source} has no class or function {attribute!r}: its networks are {', '.join(names) or 'none'}"
        )
    return Source(factory, digest or _file_of(factory, module))


def _run_file(path: Path) -> tuple[ModuleType, str]:
    """The module made of these very bytes, and their hash."""
    if not path.is_file():
        raise UserError(f"no source file at {path}: check the path of the network")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    module = ModuleType(f"network_{digest[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and inspect look it up
    _search(str(path.resolve().parent))
    exec(compile(content, str(path), "exec"), module.__dict__)
    return module, digest


def _import(name: str) -> ModuleType:
    _search(os.getcwd())
    return importlib.import_module(name)


def _search(folder: str) -> None:
    """Let its neighbours be imported; last, so that they hide nothing of this project."""
    if folder not in sys.path:
        sys.path.append(folder)


def _file_of(factory: Callable[..., nn.Module], module: ModuleType) -> str:
    try:
        path = inspect.getsourcefile(inspect.unwrap(factory)) or module.__file__
    except TypeError:  # a partial or another object without source
        path = module.__file__
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else "no source file"


def create_custom(name: str, num_classes: int) -> nn.Module:
    """The user's network, freshly initialised.

    Raises:
        UserError: as ``load_source``; or the call fails, or returns no ``nn.Module``, or one with lazy layers.
    """
    factory = load_source(name).factory
    try:
        model = factory(num_classes=num_classes)
    except (Exception, SystemExit) as error:
        raise UserError(f"{name} cannot be called with num_classes={num_classes} ({_describe(error)})") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} returns a {type(model).__name__}: it must return a torch.nn.Module")
    if lazy := [parameter for parameter, value in model.named_parameters() if is_lazy(value)]:
        raise UserError(f"{name} has a lazy layer ({lazy[0]}), whose size its first images set: give it its size")
    return model


def check_outputs(
    name: str, model: nn.Module, images: Tensor, num_classes: int | None = None, gradient: bool = True
) -> int:
    """Make sure that a network maps images (B, C, H, W) to logits (B, num_classes), in its present mode; return their
    number of classes.

    Args:
        num_classes: None takes any.
        gradient: whether the logits must have one with respect to the images.

    Raises:
        UserError: it does not; the sentence names what it returned or raised.
    """
    shape, leaf = tuple(images.shape), images.detach().clone().requires_grad_(gradient)
    try:
        with torch.set_grad_enabled(gradient):
            given = leaf.clone()  # a leaf may not be changed in place
            logits = model(given)
    except Exception as error:
        raise UserError(f"{name} does not fit images of shape {shape}: it raised {_describe(error)}") from error
    if not torch.equal(given, images):
        raise UserError(f"{name} {IN_PLACE}")
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise UserError(f"{name} returned a {type(logits).__name__}: it must return logits, a float tensor (B, C)")
    if logits.dim() != 2 or tuple(logits.shape) != (len(images), num_classes or logits.shape[1]):
        classes = num_classes or "C"
        raise UserError(
            f"{name} returned logits of shape {tuple(logits.shape)} for {classes} classes and images of shape {shape}: "
            f"they must be ({len(images)}, {classes})"
        )
    if gradient:
        try:
            found = logits.requires_grad and torch.autograd.grad(logits.sum(), leaf, allow_unused=True)[0] is not None
        except Exception as error:  # such as a function of the user's without a backward
            raise UserError(f"{name} has no gradient: its backward raised {_describe(error)}") from error
        if not found:
            raise UserError(f"{name} {NO_GRADIENT}")
    return logits.shape[1]


def source_hashes(*names: str) -> dict[str, str]:
    """SHA-256 of the source of each user's network among the names."""
    return {name: load_source(name).sha256 for name in names if is_custom(name)}


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)[:160]}"
