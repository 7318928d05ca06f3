"""How a command ends early: the reasons, and the exit code and the one sentence that each of them becomes.

    Exception
    |-- InputError (a ValueError)            2   something the user gave is wrong
    |   |-- MissingObject, ChangedObject         of the stores, in storage/base.py
    |-- Stopped                             75   asked to stop, with the work saved
    |-- TrainingError (a RuntimeError)       1   training cannot go on
    |-- StorageError (a RuntimeError)        1   the storage itself failed
    |   |-- OutageError                          for longer than a run may go without a checkpoint
    OSError with a remedy below              1   disk full, no permission, ...
    FloatingPointError                       1   a diverged model was evaluated
    KeyboardInterrupt                      130   a second Ctrl-C (commands that save nothing: the first)

Everything else is a mistake of ours, and its traceback is shown.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from ali_dist.streams import protect_streams

FAILED, WRONG_INPUT, STOPPED, INTERRUPTED = 1, 2, 75, 130
_FREE = "free some space and run the same command again"
_CHOOSE = "choose another folder, or fix this one"
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FREE),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _CHOOSE),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG), _CHOOSE),
}


class InputError(ValueError):
    """Something the user gave is wrong: a setting, a path, a credential, a shard.

    The message is one sentence that names what was wrong, what was expected and how to fix it.
    Commands print it without a traceback and exit with code 2.
    """


class Stopped(Exception):  # noqa: N818  (it is not an error: the work is saved)
    """The command was asked to stop and has saved its work; commands exit with code 75."""


class TrainingError(RuntimeError):
    """Training cannot go on (it diverged, a worker was lost too often); what was saved is kept. Exit code 1."""


class NotFiniteError(TrainingError):
    """A weight, a statistic, an average or a moment of Adam is NaN or infinite: there is nothing worth saving."""


class StorageError(RuntimeError):
    """The storage itself failed: retries exhausted, disk full, connection lost for good. Exit code 1."""


class OutageError(StorageError):
    """Nothing could be saved for `storage.outage_minutes`; what was saved before is kept. Exit code 1."""


def exit_code(program: str, action: Callable[[], int | None], interrupted: str = "Interrupted.") -> int:
    """Run a command and say in one sentence on stderr why it could not be done.

    Args:
        program: What the sentence begins with: the module that is run with python -m.
        action: Does it all; may return an exit code of its own.
        interrupted: What a Ctrl-C leaves the user with.

    Returns:
        0 done, 2 wrong input, 1 failure, 75 stopped on request with the work saved, 130 interrupted. What is a
        mistake of ours is raised as it is.
    """
    protect_streams()

    def say(sentence: object, code: int) -> int:
        sys.stderr.write(f"{program}: {sentence}\n")
        return code

    try:
        try:
            return action() or 0
        finally:
            sys.stdout.flush()  # a full disk is said here, and not when Python ends
    except InputError as error:
        return say(error, WRONG_INPUT)
    except Stopped as stopped:
        return say(stopped, STOPPED)
    except (TrainingError, StorageError, FloatingPointError) as error:  # the last: evaluating a diverged model
        return say(error, FAILED)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        file = f"{error.filename}: " if error.filename else ""  # there is none where writing to an open file failed
        code = FAILED if _REMEDIES[error.errno] == _FREE else WRONG_INPUT
        return say(f"{file}{error.strerror}; {_REMEDIES[error.errno]}.", code)
    except KeyboardInterrupt:
        return say(interrupted, INTERRUPTED)
