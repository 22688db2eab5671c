"""Checks of what a user passes in: each returns the value in its plain type or refuses it.

A refusal is a `ValueError` that names the field, the accepted values and the value got. These
run for every request, so the usual case of each is one comparison of types and one of values.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping
from itertools import islice
from numbers import Integral, Real
from typing import Any, NoReturn

MOST_ITEMS = 2**24
"""Items that a list may have: beyond any model's context or vocabulary, so that an iterator
without end is refused before it has taken all memory."""


def refuse(field: str, value: object, accepted: str) -> NoReturn:
    """Raise the `ValueError` for `field`; a long value is abridged."""
    raise ValueError(f"{field} must be {accepted}, got {_show(value)}")


def _show(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception as error:  # noqa: BLE001 - a user's `__repr__` may raise whatever it likes
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


def check_int(
    field: str, value: object, low: int, high: int | None = None, *, accepted: str | None = None
) -> int:
    """Return `value` as an int in [low, high].

    Integers of NumPy and torch pass, also as arrays and tensors without dimensions; a bool does
    not, nor does a float that happens to be whole.

    Args:
        field: the name to complain of.
        value: what was passed.
        low: the least accepted value.
        high: the greatest accepted value; None for no limit.
        accepted: what the message says is accepted, where a range does not say it all.

    Raises:
        ValueError: `value` is no integer or outside the range.
    """
    number = value if type(value) is int else _to_int(value)
    if number is None or number < low or (high is not None and number > high):
        limits = f">= {low}" if high is None else f"from {low} to {high}"
        refuse(field, value, accepted or f"an integer {limits}")
    return number


def check_float(
    field: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return `value` as a finite float in [low, high], or in (low, high] with `open_low`.

    Numbers of NumPy and torch pass, also as arrays and tensors without dimensions.

    Raises:
        ValueError: `value` is no real number, a bool, NaN, infinite or outside the range.
    """
    number = value if type(value) is float else _to_float(value)
    # NaN fails every comparison, so it is refused with what lies outside the range.
    if not low <= number <= high or math.isinf(number) or (open_low and number == low):
        if high == math.inf:
            limits = f"{'>' if open_low else '>='} {low:g}"
        else:
            limits = f"in {'(' if open_low else '['}{low:g}, {high:g}]"
        refuse(field, value, f"a finite number {limits}")
    return number


def is_integer(value: object) -> bool:
    """Return whether `check_int` takes `value` for an integer, of whatever size."""
    return type(value) is int or _to_int(value) is not None


def _to_int(value: object) -> int | None:
    """Return the plain integer in `value`; None where it is none."""
    value = _unwrap(value)
    if isinstance(value, bool) or not isinstance(value, Integral):
        return None
    try:
        return int(value)
    except Exception:  # noqa: BLE001 - a subclass may raise whatever it likes
        return None


def _to_float(value: object) -> float:
    """Return the plain number in `value`; NaN where it is none."""
    value = _unwrap(value)
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an int beyond the largest float
        return math.inf
    except Exception:  # noqa: BLE001 - a subclass may raise whatever it likes
        return math.nan


def _unwrap(value: object) -> object:
    """Return the Python number in a scalar of NumPy or torch; anything else as it is."""
    try:
        return value.item() if getattr(value, "ndim", None) == 0 else value  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a tensor without data, or a class of the user's own
        return value


def check_bool(field: str, value: object) -> bool:
    """Return `value` if it is True or False: 0, 1 and "false" are more often a mistake.

    Raises:
        ValueError: `value` is no bool.
    """
    if not isinstance(value, bool):
        refuse(field, value, "True or False")
    return value


def check_type(field: str, value: object, wanted: type, accepted: str) -> None:
    """Refuse a `value` that is not of the type `wanted`.

    Raises:
        ValueError: as the other checks do, where Python's own habit is a `TypeError`.
    """
    if not isinstance(value, wanted):
        refuse(field, value, accepted)


def check_token_ids(field: str, value: object) -> list[int]:
    """Return a new list of the token ids in `value`.

    Raises:
        ValueError: `value` is no list of integers >= 0; the message names the first wrong one.
    """
    ids = check_list(field, value, "a list of token ids")
    # A prompt may have 100,000 ids: the usual case is checked without a Python loop.
    if set(map(type, ids)) <= {int} and min(ids, default=0) >= 0:
        return ids
    return [check_int(f"{field}[{i}]", token_id, 0) for i, token_id in enumerate(ids)]


def check_strings(field: str, value: object) -> list[str]:
    """Return a new list of the strings in `value`, none of them empty.

    Raises:
        ValueError: `value` is no list of non-empty strings; the message names the first wrong one.
    """
    return [
        check_text(f"{field}[{i}]", string, "a non-empty string")
        for i, string in enumerate(check_list(field, value, "a list of strings"))
    ]


def check_names(field: str, value: object) -> list[str]:
    """Return the names in `value`, a string or several, whatever is in them.

    Raises:
        ValueError: one is no string.
    """
    accepted = "a string or a list of strings"
    names = [value] if isinstance(value, str) else check_list(field, value, accepted)
    for name in names:
        check_type(field, name, str, accepted)
    return names


def check_text(field: str, value: object, accepted: str, *, may_be_empty: bool = False) -> str:
    """Return `value` as a plain string that can be encoded.

    Args:
        field: the name to complain of.
        value: what was passed.
        accepted: what the message says is accepted.
        may_be_empty: take a string without characters too.

    Raises:
        ValueError: `value` is no string, is empty, or has half of a surrogate pair.
    """
    if not isinstance(value, str):
        refuse(field, value, accepted)
    text = str.__str__(value)  # a subclass may do in its methods what it likes
    if not text and not may_be_empty:
        refuse(field, text, accepted)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        refuse(field, text, f"valid Unicode: the character at {error.start} is half of one")
    return text


def check_dict(field: str, value: object, accepted: str) -> dict[Any, Any]:
    """Return a new dictionary of the items of a mapping, themselves unchecked.

    Raises:
        ValueError: `value` is no mapping, or cannot be read.
    """
    if not isinstance(value, Mapping):
        refuse(field, value, accepted)
    try:
        return dict(value)
    except Exception as error:  # a user's own class may raise whatever it likes
        raise _unreadable(field, accepted, error) from error


def check_list(field: str, value: object, accepted: str) -> list[Any]:
    """Return a new list of the items of `value`, themselves unchecked.

    Raises:
        ValueError: `value` cannot be iterated, or not to its end.
    """
    # A string or a mapping can be iterated too, but never holds what is meant here.
    if isinstance(value, (str, bytes, bytearray, memoryview, Mapping)):
        refuse(field, value, accepted)
    if not isinstance(value, Iterable):
        refuse(field, value, accepted)
    try:
        read = getattr(value, "tolist", None)  # of NumPy or torch
        many: Any = read() if callable(read) else value
        is_number = not isinstance(many, Iterable)  # of an array without dimensions
        copied = [] if is_number else [*islice(many, MOST_ITEMS + 1)]
    except Exception as error:  # whatever an iterator raises
        raise _unreadable(field, accepted, error) from error
    if is_number:
        refuse(field, value, accepted)
    if len(copied) > MOST_ITEMS:
        raise ValueError(f"{field} must be {accepted}, got more than {MOST_ITEMS} of them")
    return copied


def _unreadable(field: str, accepted: str, error: Exception) -> ValueError:
    return ValueError(
        f"{field} must be {accepted}; reading it raised {type(error).__name__}: {error}"
    )
