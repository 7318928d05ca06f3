"""What values of somebody else's json are: numbers, 0 or 1, whole, or missing; and how a message shows them."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

_MAX_DIGITS = 4300  # of a whole number that Python reads by default
_TOO_LARGE = 10**_MAX_DIGITS


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a json object.

    Raises:
        ValueError: It is not a json object.
    """
    try:
        content = json.loads(data, parse_int=_parse_whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its json cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError("its json is not an object")
    return content


def _parse_whole(text: str) -> int:
    """A whole number of json; Python refuses to read very long ones, for which a long one stands."""
    if len(text) <= _MAX_DIGITS:
        return int(text)
    return (-1 if text.startswith("-") else 1) * _TOO_LARGE


def is_number(value: object) -> bool:
    """Whether a value is a number; `true` and `false` count as 1 and 0."""
    return isinstance(value, int | float)


def is_finite_number(value: object) -> bool:
    """Whether a value is a number that float32 can hold; a whole number of json may have thousands of digits."""
    return isinstance(value, int | float) and abs(value) <= float(np.finfo(np.float32).max)


def has_value(value: object) -> bool:
    """Whether a value is a number other than NaN and infinity, which say nothing of what the field is."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def is_binary(value: object) -> bool:
    """Whether a value is 0 or 1."""
    return value in (0, 1)


def is_whole_number(value: object) -> bool:
    """Whether a value is a whole number, be it written as 3 or as 3.0."""
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def is_class_number(value: object) -> bool:
    """Whether a value can be the number of a class."""
    return is_whole_number(value) and value >= 0  # type: ignore[operator]


def is_missing(value: object) -> bool:
    """Whether a value stands for none: null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def show_value(value: object) -> str:
    """A value as a message shows it: it may be long, and a whole number too long to be written."""
    if isinstance(value, int) and abs(value) >= _TOO_LARGE:
        return f"a number of more than {_MAX_DIGITS:,} digits"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"a number of some {int(math.log10(abs(value))) + 1} digits"
    text = json.dumps(value, default=str)
    return text if len(text) <= 30 else f"{text[:30]}..."
