"""What the sections of the schema are made of."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from ali_dist.errors import InputError


def setting(default: Any, text: str) -> Any:
    """A field whose help text lives beside it."""
    return field(default=default, metadata={"help": text})


def require_value(ok: bool, key: str, value: object, expected: str) -> None:
    """Raise InputError with one sentence unless `ok`."""
    if not ok:
        raise InputError(f"{key} is {value!r}, but must be {expected}.")
