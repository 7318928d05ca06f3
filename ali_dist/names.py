"""Names of files and classes, which need be neither UTF-8 nor one line."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # what breaks lines, or speaks to a terminal


def name_to_bytes(name: str) -> bytes:
    """The bytes of a file's name, which need not be UTF-8: Python keeps each odd byte as a lone surrogate."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte, as JSON may have
        return name.encode("utf-8", "backslashreplace")


def printable_name(name: str) -> str:
    """The name of a file or class as any program can write it on one line: odd bytes and control characters escaped."""
    text = name_to_bytes(name).decode("utf-8", "backslashreplace")
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
