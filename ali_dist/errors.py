"""The two ways a run ends early on purpose."""


class InputError(ValueError):
    """Something the user gave is wrong: a setting, a path, a credential, a shard.

    The message is one sentence that names what was wrong, what was expected and how to fix it.
    Commands print it without a traceback and exit with code 2.
    """


class Stopped(Exception):  # noqa: N818  (it is not an error: the work is saved)
    """Training was asked to stop and has saved a checkpoint; commands exit with code 75."""


class TrainingError(RuntimeError):
    """Training cannot go on (it diverged, a worker was lost too often); what was saved is kept. Exit code 1."""
