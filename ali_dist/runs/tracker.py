"""What a tracker is: something that takes the metrics and pictures of a run while it trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ali_dist.errors import InputError
from ali_dist.runs.optional_packages import is_installed

Record = dict[str, Any]
"""What is known at one moment: `event` (train or evaluation), `images`, and values by name."""

Histograms = Mapping[str, NDArray[np.float32]]
"""Finite values [N] by the name of what they are of."""


def _forget(text: str) -> None:
    del text


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What trackers are told of a run before it trains.

    Attributes:
        name: The run's name.
        images: Images seen so far; more than 0 where a run goes on.
        settings: Every setting by its dotted name; without secrets.
        known_id: What the tracker remembered of this run in an earlier start; empty if nothing.
        remember: Keeps a text, such as an id, in the run's folder, which the next start gets as `known_id`.
        say: Shows a sentence to the user.
    """

    name: str
    images: int
    settings: Mapping[str, Any]
    known_id: str = ""
    remember: Callable[[str], None] = field(default=_forget)
    say: Callable[[str], None] = field(default=_forget)


class Tracker:
    """Takes what a run has to tell while it trains; a tracker has its own versions of those methods that it needs.

    Rank 0 alone has trackers. What one of them raises is said once and counted in summary.json, and ends no run.

    Args:
        folder: The run's folder, on this machine. What is written there reaches runs in an object store, too.

    Attributes:
        appended_files: Files of the run that the tracker appends to. A run in an object store fetches them before it
            goes on.
        is_service: Whether it tells something that may be slow and takes nothing back. It is then called from a thread
            of its own, and is told nothing twice: where a run goes on from a checkpoint, it hears again of the run
            from the moment after the last one that it knows.
    """

    appended_files: ClassVar[tuple[str, ...]] = ()
    is_service: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def check(cls) -> None:
        """Refuse before a run starts what cannot work on this machine.

        Raises:
            InputError: Such as a package that is missing.
        """

    def start(self, run: TrackedRun) -> Mapping[str, int] | None:
        """Take notice of a run that begins to train or goes on.

        Returns:
            For a service, the images of the last record of each event that it has of the run, where it can tell.
        """

    def forget_after(self, images: int) -> str | None:
        """Drop what was recorded beyond so many images: training goes on from there and records it again.

        A service is not asked to.

        Returns:
            A sentence for the user, if there is something to tell.
        """

    def log_record(self, record: Record) -> None:
        """Keep one record."""

    def log_histograms(self, histograms: Histograms, images: int) -> None:
        """Keep the distributions of values, as they were after so many images."""

    def log_image(self, path: Path, images: int) -> None:
        """Keep a PNG, drawn after so many images; its name says what it shows."""

    def finish(self, summary: Record) -> None:
        """Take notice of how training ends: the run's summary, with `status` and `metrics`. Called once a start."""

    def flush(self) -> None:
        """Bring everything to disk."""

    def close(self) -> None:
        """Let go of files. May be called twice."""


def kind_of_picture(path: Path) -> str:
    """What a picture of a run shows, by its name: `samples` of images/samples-000064000.png."""
    return path.stem.rpartition("-")[0]


def numbers_of(record: Record) -> dict[str, float]:
    """The metrics of a record, by name."""
    return {key: value for key, value in record.items() if isinstance(value, float) and key != "seconds"}


def require_package(package: str, extra: str) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        InputError: It is not; the sentence names the extra that brings it.
    """
    if not is_installed(package):
        raise InputError(
            f"report.trackers names {extra!r}, but the package {package} is not installed: install it with pip "
            f"install 'ali-dist[{extra}]', or leave {extra} out of report.trackers."
        )
