"""The trackers that a run may have, by name, and what keeps their faults away from the run.

metrics.jsonl is not among them: the run itself needs it, so every run writes it, and fails where it cannot.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ali_dist.config.suggestions import did_you_mean
from ali_dist.errors import InputError
from ali_dist.runs.mlflow_tracker import MlflowTracker
from ali_dist.runs.tensorboard_tracker import TensorBoardTracker
from ali_dist.runs.tracker import Record as Record
from ali_dist.runs.tracker import Tracker
from ali_dist.runs.tracker_guard import DirectCalls, ServiceCalls, TrackerCalls, TrackerGuard
from ali_dist.runs.wandb_tracker import WandbTracker
from ali_dist.storage.local import LocalStore

MEMORY_FILE = "trackers.json"
"""What trackers remember of a run from one start to the next: ids, and which records they have."""

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
}
"""The trackers that `report.trackers` may name."""


def check_tracker_names(names: Sequence[str]) -> None:
    """Refuse names that no tracker has.

    Raises:
        InputError: There is one.
    """
    for name in names:
        if name not in TRACKERS:
            raise InputError(
                f"report.trackers names {name!r}, but must be 'none', or some of {', '.join(TRACKERS)}, each once, "
                f"with commas between them{did_you_mean(name, TRACKERS) or '.'}"
            )


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that cannot work on this machine; rank 0's is the one that matters.

    Raises:
        InputError: A tracker does not exist, its package is missing, or it has no key.
    """
    check_tracker_names(names)
    for name in names:
        TRACKERS[name].check()


class TrackerMemory:
    """trackers.json, which several threads write.

    Args:
        folder: The run's folder on this machine.
        content: What an earlier start left there.
    """

    def __init__(self, folder: Path, content: object) -> None:
        self._store = LocalStore(folder)
        self._lock = threading.Lock()
        entries = content.items() if isinstance(content, dict) else ()
        self._content: dict[str, dict[str, Any]] = {
            str(name): entry for name, entry in entries if isinstance(entry, dict)
        }

    def recall(self, name: str) -> dict[str, Any]:
        """What a tracker has remembered, as a copy."""
        with self._lock:
            return dict(self._content.get(name, {}))

    def remember(self, name: str, entry: dict[str, Any]) -> None:
        """Keep what a tracker is to know at the next start; complete on disk when this returns."""
        with self._lock:
            self._content[name] = entry
            self._store.put(MEMORY_FILE, (json.dumps(self._content, indent=1) + "\n").encode())


def open_trackers(
    names: Sequence[str], folder: Path, memory: TrackerMemory, say: Callable[[str], None]
) -> list[TrackerCalls]:
    """Open trackers on a run's folder, each behind what keeps its faults away from the run.

    Args:
        names: Rows of `TRACKERS`.
        folder: The run's folder on this machine.
        memory: What they remember.
        say: Takes sentences for the user; from any thread.

    Raises:
        InputError: There is no tracker of such a name.
    """
    check_tracker_names(names)
    opened: list[TrackerCalls] = []
    for name in names:
        guard = TrackerGuard(name, say)
        tracker = TRACKERS[name](folder)
        opened.append(ServiceCalls(tracker, guard, memory) if tracker.is_service else DirectCalls(tracker, guard))
    return opened


def read_memory(read_json: Callable[[str], Any]) -> object:
    """The content of trackers.json; None where there is none, or none that can be read."""
    with suppress(ValueError, RecursionError):
        return read_json(MEMORY_FILE)
    return None
