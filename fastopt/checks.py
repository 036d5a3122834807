"""Internal. Checks of single arguments: numbers, whole numbers, flags, names.

Every error names the argument, what was found and what would do: ``threads: found 0, expected a whole number >= 1``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from difflib import get_close_matches
from operator import index
from reprlib import Repr
from typing import Any


class _Short(Repr):
    """``repr`` on one line, cut where it is long: a message is no place for a table of a million numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 100
        self.maxdict = self.maxlist = self.maxtuple = 8

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write out integers of thousands of digits.
        return repr(x) if abs(x) < 10**30 else f"an integer of {x.bit_length()} bits"


_short = _Short()


def describe(value: Any) -> str:
    """A value as error messages show it: on one line, cut where it is long."""
    try:
        return " ".join(_short.repr(value).split())
    except Exception:  # a repr of the user's own
        return f"an object of type {type(value).__name__}"


def wrong_type(name: str, value: Any, expected: str) -> TypeError:
    """The error for an argument of a type that cannot be meant."""
    return TypeError(f"{name}: found {describe(value)} of type {type(value).__name__}, expected {expected}")


def wrong_value(name: str, value: Any, expected: str) -> ValueError:
    """The error for an argument of the right type with a value that it cannot have."""
    return ValueError(f"{name}: found {describe(value)}, expected {expected}")


def _kind(value: Any) -> str:
    """The name of a value's type, or of its dtype in an array library: "bool" for True, NumPy's and torch's too."""
    return str(getattr(value, "dtype", type(value).__name__)).rpartition(".")[2]


def as_float(value: Any) -> float | None:
    """A real number as a float, infinite if it is beyond floats; None for anything else.

    Text is no number, nor are True and False: where a number belongs they are another argument's. An array is one if
    it is of one element and no dimensions; a tensor of torch, as torch has it, if it is of one element.
    """
    if type(value) is float:
        return value
    # float() reads text, spans of time and real parts too, and warns of an array of one element.
    if isinstance(value, (str, bytes, bytearray)) or _kind(value).startswith(("bool", "complex")):
        return None
    if getattr(getattr(value, "dtype", None), "kind", "f") not in "fiuV":
        return None
    if hasattr(value, "__array_interface__") and value.ndim:
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except Exception:  # whatever a conversion fails with, this is no number
        return None


def as_int(value: Any) -> int | None:
    """A whole number of an integer type as an int; None for anything else, True and False too."""
    if type(value) is int:
        return value
    if _kind(value) == "bool":
        return None
    try:
        return index(value)
    except Exception:
        return None


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False, expected: str = ""
) -> float:
    """A finite number within bounds, as a float.

    Parameters
    ----------
    name : str
        What the caller calls the argument.
    value : object
        The argument.
    low, high : float
        The bounds, which are allowed themselves.
    above : bool
        True if `low` is not allowed itself.
    expected : str
        What would do, in words for the error message; by default the bounds.

    Raises
    ------
    TypeError
        `value` is no number.
    ValueError
        It is not within the bounds, infinite or NaN.
    """
    number = as_float(value)
    if number is None or not low <= number <= high or math.isinf(number) or (above and number == low):
        bounds = f" {'>' if above else '>='} {low:g}" if low > -math.inf else ""
        bounds += f"{' and' if bounds else ''} <= {high:g}" if high < math.inf else ""
        raise (wrong_type if number is None else wrong_value)(name, value, expected or f"a finite number{bounds}")
    return number


def check_integer(name: str, value: Any, low: int, high: float = math.inf, expected: str = "") -> int:
    """A whole number from `low` to `high`, as an int.

    Raises
    ------
    TypeError
        `value` is of no integer type.
    ValueError
        It is not within the bounds.
    """
    number = as_int(value)
    if number is None or not low <= number <= high:
        bounds = f"an integer >= {low}" + (f" and <= {high}" if high < math.inf else "")
        raise (wrong_type if number is None else wrong_value)(name, value, expected or bounds)
    return number


def check_flag(name: str, value: Any) -> bool:
    """True or False, as a bool; the numbers 1 and 0 stand for them.

    Raises
    ------
    TypeError
        `value` is text, None or another thing that is neither.
    ValueError
        It is another number.
    """
    if value is True or value is False:
        return value
    number = float(bool(value)) if _kind(value) == "bool" and getattr(value, "ndim", 0) == 0 else as_float(value)
    if number not in (0.0, 1.0):
        raise (wrong_type if number is None else wrong_value)(name, value, "True or False")
    return bool(number)


def check_name(name: str, value: Any, known: Iterable[str]) -> str:
    """One of some names.

    Raises
    ------
    TypeError
        `value` is no string.
    ValueError
        It is none of the names.
    """
    names = tuple(known)
    if not isinstance(value, str):
        raise wrong_type(name, value, f"one of {', '.join(names)}")
    if value not in names:
        raise wrong_value(name, value, f"one of {', '.join(names)}{did_you_mean(value, names)}")
    return value


#: Names that other libraries have for arguments whose names here do not look like them.
_ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "rate", "step_size", "eta"), "lr"),
    **dict.fromkeys(("beta", "beta1", "beta2", "beta_1", "beta_2"), "betas"),
    **dict.fromkeys(("l2", "wd"), "weight_decay"),
    "epsilon": "eps",
}


def did_you_mean(name: object, known: Iterable[object], alike: float = 0.6) -> str:
    """The end of a message about an unknown name: ``"; did you mean 'lr'?"``, or nothing if none is as much `alike`."""
    names = {str(other).lower(): str(other) for other in known}
    word = name.lower() if isinstance(name, str) else ""
    like = [_ELSEWHERE[word]] if _ELSEWHERE.get(word) in names else get_close_matches(word, names, 1, alike)
    return f"; did you mean {names[like[0]]!r}?" if like else ""


def differing(found: Iterable[object], expected: Iterable[object]) -> str:
    """The end of a message about names that are not the expected ones: ``"; missing: 'b'; too many: 'c'"``."""
    missing, surplus = set(expected) - set(found), set(found) - set(expected)
    said = (("missing", missing), ("too many", surplus))
    return "".join(f"; {what}: {', '.join(sorted(map(repr, names)))}" for what, names in said if names)
