"""Every way a command ends is one sentence and an exit code; our own mistakes stay visible.

Run: `make test ARGS=tests/unit/test_errors.py`
"""

from __future__ import annotations

import errno
import os

import pytest

from ali_dist.errors import InputError, Stopped, StorageError, TrainingError, exit_code


def raising(error: BaseException):
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "says"),
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
            "ali_dist.x: A file: No space left on device; free some space and run the same command again.\n",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "runs"),
            1,
            "ali_dist.x: runs: Read-only file system; choose another place, or mend this one.\n",
        ),
    ],
)
def test_a_reason_becomes_one_sentence_and_its_code(error, code, says, capsys):
    assert exit_code("ali_dist.x", raising(error), "Go on later.") == code
    assert capsys.readouterr().err == says


@pytest.mark.parametrize("error", [OSError(errno.EBADF, "bad descriptor"), KeyError("x"), AssertionError("ours")])
def test_mistakes_of_ours_keep_their_traceback(error):
    with pytest.raises(type(error)):
        exit_code("ali_dist.x", raising(error))


def test_an_action_may_choose_its_code_and_none_is_success():
    assert exit_code("ali_dist.x", lambda: 2) == 2
    assert exit_code("ali_dist.x", lambda: None) == 0
