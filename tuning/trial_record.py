"""What is known of each trial, as `trials/NNN/trial.json`: written by the driver at every change, read to resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ali_dist.errors import InputError
from ali_dist.storage.base import Store

TrialStatus = Literal["running", "finished", "stopped", "pruned", "failed"]
"""running: has begun and not ended (or its driver was killed); finished: all images; stopped: early, as others were
better; pruned: collapsed or diverged; failed: by an error that is not training's."""
ENDED: tuple[TrialStatus, ...] = ("finished", "stopped", "pruned", "failed")


@dataclass(slots=True, kw_only=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: From 0; its run folder is `trials/NNN`.
        settings: Searched settings by dotted name.
        state: See `State`.
        reason: Why it ended, unless it finished.
        images: Seen at its last report.
        seconds: It ran, over all resumes.
        held: What it held while it ran, as Ray names it: CPU and GPU.
        evaluations: One mapping for each: `images`, `score` (where there is one), and metrics by name.
    """

    number: int
    settings: dict[str, Any]
    state: TrialStatus = "running"
    reason: str = ""
    images: int = 0
    seconds: float = 0.0
    held: dict[str, float] = field(default_factory=dict)
    evaluations: list[dict[str, float]] = field(default_factory=list)

    @property
    def score(self) -> float | None:
        """Of the last evaluation that has one."""
        return next((e["score"] for e in reversed(self.evaluations) if "score" in e), None)

    @property
    def metrics(self) -> dict[str, float]:
        """Of the last evaluation."""
        return self.evaluations[-1] if self.evaluations else {}

    def add(self, evaluation: dict[str, float]) -> None:
        """Take one more evaluation; a resumed trial repeats some, and then the newer one counts."""
        kept = [e for e in self.evaluations if e["images"] != evaluation["images"]]
        self.evaluations = sorted([*kept, evaluation], key=lambda e: e["images"])
        self.images = int(self.evaluations[-1]["images"])


def trial_name(number: int) -> str:
    """Of the trial's run: `007`."""
    return f"{number:03d}"


def save_record(store: Store, record: TrialRecord) -> None:
    """Write a trial's record into the sweep's folder, atomically."""
    content = json.dumps(asdict(record), indent=1, allow_nan=False) + "\n"
    store.put(f"trials/{trial_name(record.number)}/trial.json", content.encode())


def load_records(store: Store) -> list[TrialRecord]:
    """All records of a sweep's folder, by number.

    Raises:
        InputError: One of them cannot be read.
    """
    keys = [item.key for item in store.list("trials/") if item.key.endswith("/trial.json") and item.key.count("/") == 2]
    return sorted((_load_record(store, key) for key in keys), key=lambda record: record.number)


def _load_record(store: Store, key: str) -> TrialRecord:
    try:
        loaded = json.loads(store.get(key))
        record = TrialRecord(**loaded)
        if record.state not in get_args(TrialStatus) or not isinstance(record.settings, dict):
            raise ValueError("it is no trial's record")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{store.url}/{key} cannot be read ({error}): delete that trial's folder, and --resume runs it anew."
        ) from error
    return record


def best_record(records: Sequence[TrialRecord], *, higher: bool) -> TrialRecord | None:
    """The best finished trial; where none has finished, the best of those that have a score."""
    scored = [r for r in records if r.score is not None and r.state in ("finished", "stopped", "running")]
    finished = [r for r in scored if r.state == "finished"]
    return max(finished or scored, key=lambda r: (r.score or 0.0) * (1 if higher else -1), default=None)
