"""Training methods by name. To add one: write a file with an Objective and name it in METHODS."""

import inspect

from losses.base import Objective
from losses.dkl import DKL, GKL, IKL
from losses.lbgat import LBGAT
from losses.madry import AT
from losses.mart import MART
from losses.natural import Natural
from losses.trades import TRADES
from utils.errors import UserError

METHODS: dict[str, type[Objective]] = {
    "lbgat": LBGAT,
    "trades": TRADES,
    "at": AT,
    "mart": MART,
    "dkl": DKL,
    "ikl": IKL,
    "gkl": GKL,
    "natural": Natural,
}


def create_objective(method: str, /, **parameters: object) -> Objective:
    """The objective of a method.

    Args:
        method: a key of ``METHODS``.
        parameters: values by name (``beta``, ...); the method's constructor takes those that it declares.

    Raises:
        UserError: unknown method.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose {', '.join(METHODS)}")
    declared = inspect.signature(METHODS[method]).parameters
    return METHODS[method](**{name: value for name, value in parameters.items() if name in declared})
