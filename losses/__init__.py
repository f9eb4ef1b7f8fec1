"""Training methods by name. To add one: write a file with an Objective and name it in METHODS."""

import inspect
import textwrap

from losses.ates import ATES
from losses.backward_smoothing import BackwardSmoothing
from losses.base import Objective
from losses.dajat import DAJAT
from losses.dkl import DKL, GKL, IKL
from losses.fat import FAT, FATMART, FATTRADES
from losses.fgsm_rs import FGSM, FGSMRS
from losses.free import Free
from losses.hat import HAT
from losses.lbgat import LBGAT, LBGATKL, LBGATFrozen, LBGATNoClean
from losses.madry import AT
from losses.mart import MART
from losses.natural import Natural
from losses.rice import Rice
from losses.trades import TRADES
from losses.wa_trades import SCORE, WATRADES
from losses.yopo import TRADESYOPO, YOPO
from utils.errors import UserError
from utils.options import flag

METHODS: dict[str, type[Objective]] = {
    "lbgat": LBGAT,
    "trades": TRADES,
    "at": AT,
    "mart": MART,
    "dkl": DKL,
    "ikl": IKL,
    "gkl": GKL,
    "natural": Natural,
    "free": Free,
    "fgsm-rs": FGSMRS,
    "fgsm": FGSM,
    "yopo": YOPO,
    "trades-yopo": TRADESYOPO,
    "fat": FAT,
    "fat-trades": FATTRADES,
    "fat-mart": FATMART,
    "rice": Rice,
    "ates": ATES,
    "backward-smoothing": BackwardSmoothing,
    "wa-trades": WATRADES,
    "score": SCORE,
    "hat": HAT,
    "dajat": DAJAT,
    "lbgat-kl": LBGATKL,
    "lbgat-frozen": LBGATFrozen,
    "lbgat-no-clean": LBGATNoClean,
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


def describe_methods() -> str:
    """Every method with what it minimises, its own flags and its source, from the registry."""
    text = "methods (--method), what training minimises, their own flags, and their source:\n"
    for name, method in METHODS.items():
        summary = inspect.cleandoc(method.__doc__ or "").partition("\n\n")[0]
        text += f"\n  {name}\n{textwrap.indent(summary, '    ')}\n"
        for p in method.parameters:
            text += f"    {flag(p.name)} {p.name.upper()}: {p.help}; {p.range} (default: {p.default:g})\n"
        text += f"    {method.source}\n"
    return text
