"""The end of a command: what Python does at its own end, but for clearing its memory.

With PyTorch loaded, that clearing takes about a second, in which whoever waits for the command (a scheduler that takes
the machine away, a script that starts the next one) gets nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


def run_to_the_end(main: Callable[[], int]) -> NoReturn:
    """Run a command and end this process with its exit code.

    A program that runs the command as a part of its own (a debugger, a profiler, a test) has more to do, and so has
    `python -i`: there this raises SystemExit, as Python has it.
    """
    is_program = _is_program()
    try:
        code = main()
    except SystemExit as end:  # of argparse, or of a parent whose child has done it all
        if not (end.code is None or isinstance(end.code, int)):
            raise
        code = end.code or 0
    if not is_program or _is_observed():
        sys.exit(code)
    _end_at_once(code)


def _is_program() -> bool:
    """Whether nobody has called the caller of `run_to_the_end` but Python itself, by `python -m` or a script."""
    frame = sys._getframe(2)
    names = set()
    while frame is not None:
        names.add(frame.f_globals.get("__name__", "").rpartition(".")[2])
        frame = frame.f_back  # type: ignore[assignment]
    return names <= {"__main__", "runpy"}


def _is_observed() -> bool:
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
    has_tools = monitoring is not None and any(monitoring.get_tool(number) for number in range(6))
    return has_tools or bool(sys.gettrace() or sys.getprofile() or sys.flags.interactive)


def _end_at_once(code: int) -> NoReturn:
    """What Python calls at its end, in its order: threads are waited for, then what was registered is done."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # not public, and there since Python 2.6
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except BaseException:  # noqa: BLE001  (Python itself says what it is, and ends)
        sys.exit(code)
    os._exit(code)
