"""What the sections of the schema are made of."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from ali_dist.errors import InputError

_LONGEST = 80  # characters of a value in a message


def setting(default: Any, text: str) -> Any:
    """A field whose help text lives beside it."""
    return field(default=default, metadata={"help": text})


def show_value(value: object) -> str:
    """A value as messages show it: what is far too long for a sentence is cut."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def require_value(ok: bool, key: str, value: object, expected: str) -> None:
    """Raise InputError with one sentence unless `ok`."""
    if not ok:
        raise InputError(f"{key} is {show_value(value)}, but must be {expected}.")
