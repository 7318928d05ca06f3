"""What the numbers of arrays mean as pixels, which is decided over all splits alike: one dark split is no mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.errors import InputError


@dataclass(frozen=True, slots=True)
class NumberRange:
    """The numbers of one array.

    Attributes:
        kind: Their kind as numpy has it: `b` for bool, `u` and `i` for whole numbers, `f` for others.
        low: The least of them.
        high: The largest of them.
        is_whole: Whether none has a fraction.
    """

    kind: str
    low: float
    high: float
    is_whole: bool

    @classmethod
    def of(cls, array: NDArray[Any], what: str) -> NumberRange:
        """Measure an array that is not empty; messages call it `what`.

        Raises:
            InputError: It does not hold numbers.
        """
        kind = array.dtype.kind
        if kind not in "biuf":
            raise InputError(f"{what} is of type {array.dtype}, but numbers are needed, at best uint8.")
        is_whole = kind != "f" or bool((array == np.floor(array)).all())
        return cls(kind, float(array.min()), float(array.max()), is_whole)

    def join(self, others: Sequence[NumberRange]) -> NumberRange:
        """The range of this array and of those others that have fractions, or have none, as this one."""
        alike = [self, *(other for other in others if (other.kind == "f") == (self.kind == "f"))]
        # Of numpy, because NaN must stay.
        low, high = float(np.min([each.low for each in alike])), float(np.max([each.high for each in alike]))
        return NumberRange(self.kind, low, high, all(each.is_whole for each in alike))

    @property
    def is_binary(self) -> bool:
        """Whether the type has no fractions, and there are zeros and ones only."""
        return self.kind == "b" or (self.kind != "f" and self.low == 0 and self.high == 1)


def to_bytes(array: NDArray[Any], joined: NumberRange, what: str) -> NDArray[np.uint8]:
    """Convert numbers to bytes where they say which range is meant.

    Zeros and ones become 0 and 255, and so do fractions from 0 to 1; whole numbers to 255 stay.

    Args:
        array: The numbers.
        joined: Their range and that of the other splits.
        what: What messages call the array.

    Raises:
        InputError: They do not.
    """
    low, high = joined.low, joined.high
    if joined.is_binary:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint8:
        return array
    if joined.is_whole and low >= 0 and 1 < high <= 255:
        return array.astype(np.uint8)
    if joined.kind == "f" and low >= 0 and high <= 1:
        return np.round(array * 255).astype(np.uint8)
    raise InputError(
        f"{what} has {array.dtype} numbers from {low:g} to {high:g}, which could mean several things: write uint8 from "
        f"0 to 255, or fractions from 0 to 1."
    )
