"""What to do about PyTorch's import, which takes seconds: begin early, do no more, and tell a person who waits."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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


def load_meanwhile(package: str) -> None:
    """Import a package in a thread, while this one waits for a storage; whoever imports it then waits for the rest."""
    if package not in sys.modules:
        threading.Thread(target=_load, args=(package,), name=f"import-{package}", daemon=True).start()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Meanwhile, Python looks for no reference cycles: as thousands of modules load, that is a tenth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _load(package: str) -> None:
    with collector_paused(), suppress(Exception):  # the import that needs it says what is wrong
        importlib.import_module(package)


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
