"""Warnings of libraries as sentences: each is said once, without the lines of source code that Python prints."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

_MOST_CHARACTERS = 200


@contextmanager
def say_warnings(say: Callable[[str], None]) -> Iterator[None]:
    """Within the block, say what is warned of in place of printing it.

    Args:
        say: Takes a sentence for the user.
    """
    said: set[tuple[type[Warning], str]] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        del file, line
        text = " ".join(str(message).split())
        if (category, text) not in said:
            said.add((category, text))
            shown = text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
            say(f"A library warns: {shown} ({category.__name__}, {Path(filename).name}:{lineno})")

    before = warnings.showwarning
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = before
