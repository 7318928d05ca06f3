"""Signals that ask a command to save its work and stop, and work beside the main thread, which alone hears them.

SIGTERM is what schedulers send, SIGINT is Ctrl-C, SIGHUP says that the terminal is gone, and SIGUSR1 is what Slurm's
`--signal` sends ahead of the end. All of them ask for the same. A SIGHUP that is ignored when the command starts, as
under nohup, stays ignored.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from ali_dist.errors import STOPPED, Stopped

Result = TypeVar("Result")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
GRACE_SECONDS = 3.0
"""How long a command that has nothing to save may take to end by itself."""
_POLL_SECONDS = 0.1
_AGAIN_SECONDS = 0.05


class StoppedAtOnce(Stopped):
    """The command was asked to stop where it had nothing to save; of several ranks, perhaps this one alone."""


@contextmanager
def stop_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """Within the block, each of `STOP_SIGNALS` calls `request_stop`; a second SIGINT raises KeyboardInterrupt.

    The call comes at once, even while the main thread is in a library, where Python's own handlers have to wait.
    Does nothing outside the main thread, where Python allows no signal handlers.

    Args:
        request_stop: Called in the signal handler, and in a thread: it should do no more than set an event.
    """
    interrupts = 0

    def handle_signal(signum: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        del frame
        request_stop()
        interrupts += signum == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt

    with _handle_signals(handle_signal), _hear_at_once(request_stop):
        yield


@contextmanager
def stop_at_once(sentence: str, *, heeds_ctrl_c: bool = True) -> Iterator[None]:
    """Within the block, the first of `STOP_SIGNALS` interrupts as Ctrl-C does, and the block raises StoppedAtOnce.

    Where nothing comes of that for `GRACE_SECONDS`, because a library does not listen, the process ends with the same
    sentence and the same exit code. Does nothing outside the main thread.

    Args:
        sentence: What the user is told.
        heeds_ctrl_c: Whether that holds for SIGINT, too; otherwise it raises KeyboardInterrupt as ever.

    Raises:
        StoppedAtOnce: A signal came.
    """
    asked = threading.Event()

    def handle_signal(signum: int, frame: FrameType | None) -> None:
        del frame
        is_first = not asked.is_set()
        if heeds_ctrl_c or signum != signal.SIGINT:
            asked.set()
        if is_first or signum == signal.SIGINT:
            raise KeyboardInterrupt

    in_time = threading.Event()
    with _handle_signals(handle_signal), _dropped_interrupts_repeated():
        try:
            with _hear_at_once(lambda: _end_after_grace(in_time, sentence)):
                try:
                    yield
                finally:
                    in_time.set()
        except BaseException:
            if asked.is_set():  # whatever a library has made of the interruption
                raise StoppedAtOnce(sentence) from None
            raise
    if asked.is_set():
        raise StoppedAtOnce(sentence)


@contextmanager
def _dropped_interrupts_repeated() -> Iterator[None]:
    """Within the block, an interruption that Python can only drop, as in a callback of its import, comes once more."""
    before = sys.unraisablehook
    timers: list[threading.Timer] = []

    def repeat(dropped: sys.UnraisableHookArgs) -> None:
        if issubclass(dropped.exc_type, KeyboardInterrupt):
            # Not now: this is in that callback still.
            again = (threading.main_thread().ident, signal.SIGINT)
            timer = threading.Timer(_AGAIN_SECONDS, signal.pthread_kill, again)
            timer.daemon = True
            timer.start()
            timers.append(timer)
        else:
            before(dropped)

    sys.unraisablehook = repeat
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


@contextmanager
def pass_on_signals(pass_on: Callable[[int], None]) -> Iterator[None]:
    """Within the block, call `pass_on` with the number of each of `STOP_SIGNALS` that arrives, and do nothing else.

    Args:
        pass_on: Called in the signal handler.
    """

    def handle_signal(signum: int, frame: FrameType | None) -> None:
        del frame
        pass_on(signum)

    with _handle_signals(handle_signal), _hear_at_once(lambda: None):
        yield


@contextmanager
def end_after_grace(is_asked: threading.Event, may_end: Callable[[], bool], sentence: str) -> Iterator[None]:
    """Within the block, end the process where `is_asked` is set for `GRACE_SECONDS`, with a sentence and exit code 75.

    Args:
        is_asked: Whether the process was asked to stop.
        may_end: Whether nothing would be lost.
        sentence: What the user is told.
    """
    is_left = threading.Event()

    def watch() -> None:
        while not is_asked.is_set():
            if is_left.wait(_POLL_SECONDS):
                return
        if is_left.wait(GRACE_SECONDS):
            return
        while not may_end():
            if is_left.wait(_POLL_SECONDS):
                return
        end_process(sentence, STOPPED)

    thread = threading.Thread(target=watch, name="ali-grace", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_left.set()


def end_process(sentence: str, code: int) -> None:
    """End this process now, whatever its other threads are doing, and say why on stderr."""
    with contextlib.suppress(OSError):
        os.write(2, f"{sentence}\n".encode(errors="backslashreplace"))
    os._exit(code)


def _end_after_grace(in_time: threading.Event, sentence: str) -> None:
    if not in_time.wait(GRACE_SECONDS):
        end_process(sentence, STOPPED)


@contextmanager
def interrupt_on_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM, SIGHUP and SIGUSR1 interrupt as Ctrl-C does, so that temporary files are removed.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """
    with _handle_signals(signal.default_int_handler):
        yield


@contextmanager
def _handle_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, `handler` handles `STOP_SIGNALS`, but for a SIGHUP that is ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]
    previous = {signum: signal.signal(signum, handler) for signum in heeded}
    try:
        yield
    finally:
        for signum, handler_before in previous.items():  # None: it was not Python's
            signal.signal(signum, signal.SIG_DFL if handler_before is None else handler_before)


@contextmanager
def _hear_at_once(react: Callable[[], None]) -> Iterator[None]:
    """Within the block, call `react` in a thread whenever one of `STOP_SIGNALS` arrives that is handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def listen() -> None:
        while numbers := ours.recv(64):
            if any(number in STOP_SIGNALS for number in numbers):
                react()

    thread = threading.Thread(target=listen, name="ali-signals", daemon=True)
    thread.start()
    previous = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        theirs.close()
        thread.join(GRACE_SECONDS)
        ours.close()


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
        request_stop: Called on the first of `STOP_SIGNALS`; see `stop_on_signals`.
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
