"""However a command ends, the user gets one sentence and an exit code, while our own mistakes stay visible.

Run: `make test ARGS=tests/unit/test_errors.py`
"""

from __future__ import annotations

import errno
import os

import pytest

from ali_dist.errors import InputError, Stopped, StorageError, TrainingError, exit_code


def make_action(error: BaseException):
    """Make a function that raises `error`."""

    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("run.seed is -1."), 2, "ali_dist.x: run.seed is -1.\n"),
        (Stopped("Saved at image 640."), 75, "ali_dist.x: Saved at image 640.\n"),
        (TrainingError("It diverged."), 1, "ali_dist.x: It diverged.\n"),
        (StorageError("503 six times."), 1, "ali_dist.x: 503 six times.\n"),
        (KeyboardInterrupt(), 130, "ali_dist.x: Go on later.\n"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a/metrics.jsonl"),
            1,
            "ali_dist.x: runs/a/metrics.jsonl: No space left on device; free some space and run the same command "
            "again.\n",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            1,
            "ali_dist.x: No space left on device; free some space and run the same command again.\n",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "runs"),
            2,
            "ali_dist.x: runs: Read-only file system; choose another folder, or fix this one.\n",
        ),
    ],
)
def test_an_error_becomes_one_sentence_and_its_exit_code(error, code, message, capsys):
    assert exit_code("ali_dist.x", make_action(error), "Go on later.") == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "bad descriptor"), KeyError("x"), AssertionError("ours")])
def test_our_own_mistakes_keep_their_traceback(error):
    with pytest.raises(type(error)):
        exit_code("ali_dist.x", make_action(error))


def test_an_action_may_choose_its_exit_code_and_none_means_success():
    assert exit_code("ali_dist.x", lambda: 2) == 2
    assert exit_code("ali_dist.x", lambda: None) == 0
