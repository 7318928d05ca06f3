"""Where the weights of a run come from: for each start that led to them, when, where, and by which code and command."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ali_dist.version import VERSION

MOST_STARTS = 50
"""Starts that are kept, at most: the first one and the newest; spot machines may be lost hundreds of times."""
_OURS = re.compile(r"(ali_dist|tuning|tests)(\.\w+)*")
_GIT_SECONDS = 5.0

Start = dict[str, Any]


def describe_start(images: int, *, torch_version: str) -> Start:
    """What is known of this start of a run.

    Args:
        images: Images that had been seen before it.
        torch_version: The version of torch.

    Returns:
        `started` (ISO 8601, UTC), `images`, `host`, `ali_dist`, `torch` and `python` (versions) and, where they are
        known, `commit` and `command`.
    """
    root = Path(__file__).resolve().parents[2]
    known = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "images": images,
        "host": platform.node(),
        "ali_dist": VERSION,
        "torch": torch_version,
        "python": platform.python_version(),
        "commit": read_commit(root),
        "command": command_line(sys.orig_argv, sys.argv),
    }
    return {key: value for key, value in known.items() if value != ""}


def add_start(starts: Sequence[Start], start: Start) -> list[Start]:
    """Put a start behind the earlier ones, of which the first and the newest are kept."""
    every = [*starts, start]
    return every if len(every) <= MOST_STARTS else [every[0], *every[-(MOST_STARTS - 1) :]]


def read_commit(root: Path) -> str:
    """The commit of a git checkout, with `+` behind it where files differ from it; empty where it is none."""
    if not (root / ".git").exists():
        return ""
    commit = _ask_git(root, "rev-parse", "HEAD")
    return f"{commit}+" if commit and _ask_git(root, "status", "--porcelain", "--untracked-files=no") else commit


def _ask_git(root: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "--no-optional-locks", *words],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):  # no git, or one that hangs: nothing that training depends on
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def command_line(original: Sequence[str], arguments: Sequence[str]) -> str:
    """The command that a person typed; empty where the process was started by something else, such as Ray.

    What Ray starts its workers with is nobody's business: it holds addresses and tokens.

    Args:
        original: The words that Python was started with, as `sys.orig_argv`.
        arguments: The words of the program, as `sys.argv`.
    """
    if Path(arguments[0] if arguments else "").name == "ali":
        return _join(["ali", *arguments[1:]])
    words = list(original)
    if "-m" not in words or words.index("-m") + 1 >= len(words):
        return ""
    place = words.index("-m")
    return _join(["python", *words[place:]]) if _OURS.fullmatch(words[place + 1]) else ""


def _join(words: Sequence[str]) -> str:
    """The words as a shell takes them, without names and passwords in urls."""
    return shlex.join(re.sub(r"(?<=://)[^/@\s]+@", "", word) for word in words)


def read_starts(saved: Sequence[Any]) -> list[Start]:
    """The starts, as a checkpoint has them; what is none is left out."""
    return [dict(start) for start in saved if isinstance(start, Mapping)]
