"""Training methods by name. To add one: write a file with an Objective and name it in METHODS."""

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


def find_method(method: str) -> type[Objective]:
    """The class of a method.

    Raises:
        UserError: unknown method.
    """
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}: choose {', '.join(METHODS)}")
    return METHODS[method]


def create_objective(method: str, num_classes: int = 0, label_smoothing: float = 0.0, **values: float) -> Objective:
    """The objective of a method.

    Args:
        method: a key of ``METHODS``.
        num_classes: C, for methods with a class prior.
        label_smoothing: of the cross-entropies with y that training minimises, in [0, 1).
        values: of the method's own parameters, by name; the others have their defaults.

    Raises:
        UserError: unknown method or parameter, or a value outside of its range.
    """
    return find_method(method)(num_classes=num_classes, label_smoothing=label_smoothing, **values)
