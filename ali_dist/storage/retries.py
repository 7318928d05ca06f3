"""Word of requests that are tried again, for whoever would rather not wait for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening_for_retries(listener: Callable[[], None]) -> Iterator[None]:
    """Call `listener` each time a store that this thread asks meanwhile has failed, and is going to be asked again."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def note_retry() -> None:
    """Tell who listens in this thread that a request has failed and will be tried again."""
    listener = _listener.get()
    if listener is not None:
        listener()
