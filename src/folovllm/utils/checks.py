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

MOST_ITEMS = 10_000_000
"""More than any list that somebody means; an iterator may have no end."""


def refuse(field: str, value: object, accepted: str) -> NoReturn:
    """Raise the `ValueError` for `field`; a long value is abridged."""
    raise ValueError(f"{field} must be {accepted}, got {reprlib.repr(value)}")


def check_int(
    field: str, value: object, low: int, high: int | None = None, *, accepted: str | None = None
) -> int:
    """Return `value` as an int in [low, high].

    NumPy's integers pass; a bool does not, nor does a float that happens to be whole.

    Args:
        field: the name to complain of.
        value: what was passed.
        low: the least accepted value.
        high: the greatest accepted value; None for no limit.
        accepted: what the message says is accepted, where a range does not say it all.

    Raises:
        ValueError: `value` is no integer or outside the range.
    """
    if type(value) is int:
        number = value
    elif isinstance(value, bool) or not isinstance(value, Integral):
        number = low - 1  # refused below
    else:
        number = int(value)
    if number < low or (high is not None and number > high):
        limits = f">= {low}" if high is None else f"from {low} to {high}"
        refuse(field, value, accepted or f"an integer {limits}")
    return number


def check_float(
    field: str, value: object, low: float, high: float = math.inf, *, open_low: bool = False
) -> float:
    """Return `value` as a finite float in [low, high], or in (low, high] with `open_low`.

    Raises:
        ValueError: `value` is no real number, a bool, NaN, infinite or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        number = math.nan
    else:
        try:
            number = float(value)
        except OverflowError:  # an int beyond the largest float
            number = math.inf
    # NaN fails every comparison, so it is refused with what lies outside the range.
    if not low <= number <= high or math.isinf(number) or (open_low and number == low):
        if high == math.inf:
            limits = f"{'>' if open_low else '>='} {low:g}"
        else:
            limits = f"in {'(' if open_low else '['}{low:g}, {high:g}]"
        refuse(field, value, f"a finite number {limits}")
    return number


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
    ids = to_list(field, value, "token ids")
    # A prompt may have 100,000 ids: the usual case is checked without a Python loop.
    if set(map(type, ids)) <= {int} and min(ids, default=0) >= 0:
        return ids
    return [check_int(f"{field}[{i}]", token_id, 0) for i, token_id in enumerate(ids)]


def check_strings(field: str, value: object) -> list[str]:
    """Return a new list of the strings in `value`, none of them empty.

    Raises:
        ValueError: `value` is no list of non-empty strings; the message names the first wrong one.
    """
    strings: list[str] = []
    for i, string in enumerate(to_list(field, value, "strings")):
        if not isinstance(string, str) or not string:
            refuse(f"{field}[{i}]", string, "a non-empty string")
        strings.append(string)
    return strings


def to_list(field: str, value: object, items: str) -> list[Any]:
    """Return a new list of what is in `value`; of an array or a tensor, its numbers.

    Raises:
        ValueError: `value` is no list, nor what can be read as one, or has no end.
    """
    # A string or a mapping can be iterated too, but never holds what is meant here.
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        refuse(field, value, f"a list of {items}")
    if type(value) in (list, tuple):
        return [*value]
    try:
        if callable(read := getattr(value, "tolist", None)):  # of NumPy or torch
            found = read()
        else:
            found = list(islice(value, MOST_ITEMS + 1))
    except Exception as error:
        # It is somebody's iterator, and raises whatever it likes.
        raise ValueError(f"{field} cannot be read: {type(error).__name__}: {error}") from error
    if not isinstance(found, list):  # of an array without a dimension
        refuse(field, value, f"a list of {items}")
    if len(found) > MOST_ITEMS:
        raise ValueError(f"{field} must have at most {MOST_ITEMS} {items}")
    return found
