"""Work beside the main thread: its result and its errors come back, and signals reach the main thread meanwhile."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref

import pytest

from ali_dist.launchers.signals import StoppedAtOnce, interrupt_on_sigterm, run_beside_main_thread, stop_at_once


def run(work, request_stop=lambda: None, on_poll=lambda: None):
    return run_beside_main_thread(
        work, request_stop=request_stop, on_poll=on_poll, poll_seconds=0.01, name="test-of-signals"
    )


def test_what_the_work_returns_or_raises_comes_back_to_the_caller() -> None:
    threads: list[str] = []

    def name_thread() -> int:
        threads.append(threading.current_thread().name)
        return 7

    assert run(name_thread) == 7
    assert threads == ["test-of-signals"]
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_the_caller_hears_of_it_while_the_work_goes_on(number: int) -> None:
    stop_event = threading.Event()
    polls: list[bool] = []

    def work() -> str:
        os.kill(os.getpid(), number)
        assert stop_event.wait(20)
        time.sleep(0.1)
        return "saved"

    before = signal.getsignal(number)
    assert run(work, stop_event.set, lambda: polls.append(stop_event.is_set())) == "saved"
    assert polls[-1]
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_the_wait_and_leaves_the_work_behind() -> None:
    first = threading.Event()
    release = threading.Event()

    def note_in_the_handler() -> None:
        """Python runs one handler for two signals that arrive before it: the second has to wait for the first's."""
        if threading.current_thread() is threading.main_thread():
            first.set()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        assert first.wait(20)
        os.kill(os.getpid(), signal.SIGINT)
        release.wait(20)

    with pytest.raises(KeyboardInterrupt):
        run(work, note_in_the_handler)
    release.set()


def test_beside_another_thread_signals_are_left_alone() -> None:
    """Trials of a sweep train in threads of Ray's: Python allows no handlers there."""
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(run(lambda: 3)))
    thread.start()
    thread.join(20)
    assert results == [3]


def test_sigterm_interrupts_a_command_so_that_it_cleans_up():
    with pytest.raises(KeyboardInterrupt), interrupt_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_interruption_that_python_drops_comes_again(capsys):
    """As in a callback of Python's import, where a command often is in its first second."""

    class Garbage:
        pass

    garbage = Garbage()
    reference = weakref.ref(garbage, lambda _: signal.raise_signal(signal.SIGTERM))
    held = [garbage]
    del garbage

    def wait() -> None:
        with stop_at_once("Nothing to save."):
            held.clear()
            time.sleep(30)

    with pytest.raises(StoppedAtOnce, match="Nothing to save"):
        wait()
    assert reference() is None
    assert capsys.readouterr().err == ""
