"""A run in one process that goes on when the process is killed, without a cluster to start it again.

A parent loads what training needs and then forks: the child trains, and the parent waits. Where a signal ends the
child (a crash in a library, the kernel for want of memory, a person), the parent forks another one, which goes on from
the newest checkpoint. It has nothing to load, so that it trains again within a second or two. An error of training,
which would only come again, ends both.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

from ali_dist.config import Config
from ali_dist.errors import Stopped, TrainingError
from ali_dist.launchers.local import run_local
from ali_dist.launchers.signals import pass_on_signals
from ali_dist.runs.trackers import Record

_PR_SET_PDEATHSIG = 1  # Linux: a signal that a process gets when its parent ends


class ChildEnded(SystemExit):  # noqa: N818  (it is how this process ends, and no error)
    """The child has ended by itself, and has said all there is to say: this process ends with its exit code."""


class _Child:
    """The process that trains, as its parent sees it."""

    def __init__(self) -> None:
        self.pid = 0  # none is running
        self.is_asked_to_stop = False

    def pass_on(self, number: int) -> None:
        """Send it a signal that the parent has got; a Ctrl-C it has got itself, from the terminal of both."""
        self.is_asked_to_stop = True
        if self.pid and not (number == signal.SIGINT and _is_in_foreground()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def run_supervised(config: Config) -> Record | None:
    """Train in a child of this process, which is started again up to `scale.max_failures` times.

    Returns:
        In the child alone: the summary of the run, see `run_local`.

    Raises:
        ChildEnded: In the parent: the child has come to its end.
        Stopped: In the parent: it was asked to stop while there was no child.
        TrainingError: In the parent: the child was killed once too often.
        Exception: In the child: what `run_local` raises.
    """
    most = config.scale.max_failures or 0
    child = _Child()
    with pass_on_signals(child.pass_on):
        for restarts in range(most + 1):
            if child.is_asked_to_stop:
                break
            child.pid = _fork()
            if not child.pid:
                break
            if not restarts:
                _load_for_the_next(config)
            _, status = os.waitpid(child.pid, 0)
            child.pid = 0
            code = os.waitstatus_to_exitcode(status)
            if code >= 0:
                raise ChildEnded(code)
            _say(_describe_end(code, restarts, most, is_asked=child.is_asked_to_stop))
        else:
            raise TrainingError(
                f"The process that trains was killed more often than scale.max_failures ({most}) allows; checkpoints "
                "are kept: run the same command to go on from the newest."
            )
    signal.set_wakeup_fd(-1)  # not the one of before, which is the parent's, too
    if child.is_asked_to_stop:
        raise Stopped(
            "Stopped on request, without another checkpoint; run the same command to go on from the newest one."
        )
    return run_local(config)


def _fork() -> int:
    """Fork; 0 in the child, which ends with its parent, and which the parent's signals do not reach any more."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        signal.set_wakeup_fd(-1)  # the parent's, which would hear of the child's signals
        with contextlib.suppress(OSError, AttributeError):  # where there is no such call, an orphan trains on
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended in between
            os.kill(os.getpid(), signal.SIGTERM)
    return pid


def _load_for_the_next(config: Config) -> None:
    """Load, while a child trains, what that child had to load for itself: the next one will have it."""
    if any(place.startswith("s3://") for place in (config.data.url, config.run.dir)):
        from ali_dist.storage.s3_client import load_client_code

        with contextlib.suppress(Exception):  # the child says what is wrong
            load_client_code()


def _describe_end(code: int, restarts: int, most: int, *, is_asked: bool) -> str:
    name = signal.Signals(-code).name
    reason = f"The process that trains was ended by {name}"
    if -code == signal.SIGKILL:
        reason += ", perhaps for want of memory"
    if is_asked or restarts == most:
        return f"{reason}."
    return f"{reason}; it is started again (restart {restarts + 1} of at most {most})."


def _say(sentence: str) -> None:
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def _is_in_foreground() -> bool:
    """Whether a Ctrl-C at the terminal reaches every process of this one's group."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # standard input is no terminal
        return False
