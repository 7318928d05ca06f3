"""A word to a person who waits while PyTorch is loaded, which takes seconds before a command has anything to show."""

from __future__ import annotations

import sys
import threading

_AFTER_SECONDS = 2.0


def say_if_loading(package: str, words: str, *, after: float = _AFTER_SECONDS) -> threading.Thread:
    """Write `words` on stderr, once, if it is a terminal and the package is being imported for longer than a moment.

    Args:
        package: Its name in `sys.modules`.
        words: A line, which stays.
        after: Seconds from one look to the next.

    Returns:
        The thread that looks; it ends once the package is loaded, or the words are said, and keeps no process alive.
    """
    thread = threading.Thread(target=_watch, args=(package, words, after), name="loading-note", daemon=True)
    if sys.stderr is not None and sys.stderr.isatty():
        thread.start()
    return thread


def _watch(package: str, words: str, after: float) -> None:
    wait = threading.Event().wait
    while not wait(after):
        if _is_loading(package):
            sys.stderr.write(f"{words}\n")
            sys.stderr.flush()
        if package in sys.modules:
            return


def _is_loading(package: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(package), "__spec__", None), "_initializing", False))
