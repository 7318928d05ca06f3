"""Signals that ask a command to save its work and stop, and work beside the main thread, which alone hears them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")


@contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, SIGTERM and SIGINT call `request_stop`; a second SIGINT raises KeyboardInterrupt.

    Does nothing outside the main thread, where Python allows no signal handlers.

    Args:
        request_stop: Called in the signal handler: it should do no more than set an event.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle_signal(signum: int, frame: FrameType | None) -> None:
        del frame
        request_stop()
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = {signum: signal.signal(signum, handle_signal) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM interrupts as Ctrl-C does, so that temporary files are removed on the way out.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def run_beside_main_thread(
    work: Callable[[], Result],
    *,
    request_stop: Callable[[], None],
    on_poll: Callable[[], None],
    poll_seconds: float,
    name: str,
) -> Result:
    """Run `work` in a thread of its own, so that the calling thread, if it is the main one, hears signals meanwhile.

    Ray Train and Ray Tune install signal handlers of their own where they run in the main thread.

    Args:
        work: What is to be done.
        request_stop: Called on SIGTERM and on the first SIGINT; see `stop_on_signals`.
        on_poll: Called in the calling thread every `poll_seconds`, and once more when the work is done.
        poll_seconds: Time between two polls.
        name: Name of the thread, for debuggers.

    Returns:
        What `work` returns.

    Raises:
        BaseException: What `work` or `on_poll` raises, or KeyboardInterrupt on a second SIGINT. In the last two cases
            the thread is left behind; it does not keep the process alive.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run_work() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  (raised again in the calling thread)
            errors.append(error)

    thread = threading.Thread(target=run_work, name=name, daemon=True)
    with stop_on_signals(request_stop):
        thread.start()
        while thread.is_alive():
            thread.join(poll_seconds)
            on_poll()
    if errors:
        raise errors[0]
    return results[0]
