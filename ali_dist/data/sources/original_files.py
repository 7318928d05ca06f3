"""Find the files of a source, and choose among its splits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ali_dist.errors import InputError


def first_existing(paths: Sequence[Path]) -> Path | None:
    """Find the first of some paths that exists."""
    return next((path for path in paths if path.exists()), None)


def choose_splits(chosen: Sequence[str] | None, all_splits: Sequence[str]) -> tuple[str, ...]:
    """Return the splits to write, in the source's order; None stands for all.

    Raises:
        InputError: A split is chosen that the source does not have.
    """
    if chosen is None:
        return tuple(all_splits)
    for split in chosen:
        if split not in all_splits:
            raise InputError(f"--splits names {split!r}, but the splits are: {', '.join(all_splits)}.")
    return tuple(split for split in all_splits if split in chosen)
