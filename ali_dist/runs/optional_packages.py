"""Packages that an extra brings, and what must not be repeated of what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import sys

_SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET", re.ASCII)
_SHORTEST_SECRET = 6  # characters: a shorter one may be part of any word


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported for that."""
    if package in sys.modules:
        return True
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # else a mere folder of that name, such as W&B writes


def without_secrets(text: str, *secrets: str) -> str:
    """Text without users and passwords of urls, without the values of variables that hold secrets, and `secrets`."""
    values = [value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())]
    for value in (*values, *secrets):
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return re.sub(r"(?<=://)[^/\s@]+@", "***@", text)
