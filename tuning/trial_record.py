"""What is known of each trial, as `trials/NNN/trial.json`: written by the driver at every change, read to resume."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from ali_dist.errors import InputError
from ali_dist.storage.base import Store

TrialStatus = Literal["running", "finished", "stopped", "pruned", "failed"]
"""running: has begun and not ended (or its driver was killed); finished: has seen all images; stopped: early, because
others were better; pruned: collapsed or diverged; failed: by an error that is not training's."""
ENDED_STATES: tuple[TrialStatus, ...] = ("finished", "stopped", "pruned", "failed")


@dataclass(slots=True, kw_only=True)
class TrialRecord:
    """One trial. The names of its attributes are those of the file.

    Attributes:
        number: Counted from 0; the trial's run folder is `trials/NNN`.
        settings: Searched settings by dotted name.
        state: See `TrialStatus`.
        reason: Why the trial ended, unless it finished.
        images: Images seen at its last report.
        seconds: How long it ran, over all resumes.
        held: The resources that it held while it ran, as Ray names them: CPU and GPU.
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
        """The score of the last evaluation that has one."""
        return next((e["score"] for e in reversed(self.evaluations) if "score" in e), None)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the last evaluation."""
        return self.evaluations[-1] if self.evaluations else {}

    @property
    def has_ended(self) -> bool:
        """Whether the trial is not to be run any more."""
        return self.state in ENDED_STATES

    def add_evaluation(self, evaluation: dict[str, float]) -> None:
        """Add one more evaluation; a resumed trial repeats some, and then the newer one counts."""
        others = [e for e in self.evaluations if e["images"] != evaluation["images"]]
        self.evaluations = sorted([*others, evaluation], key=lambda e: e["images"])
        self.images = int(self.evaluations[-1]["images"])

    def copy(self) -> TrialRecord:
        """A record that does not change with this one.

        What it holds is numbers and words, so that two levels are enough; `copy.deepcopy` takes ten times as long, and
        the table on the terminal asks for all records twice a second.
        """
        return replace(
            self,
            settings=dict(self.settings),
            held=dict(self.held),
            evaluations=[dict(evaluation) for evaluation in self.evaluations],
        )


def trial_name(number: int) -> str:
    """The name of the trial's run, such as `007`."""
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
        record = TrialRecord(**json.loads(store.get(key)))
        if record.state not in get_args(TrialStatus) or not isinstance(record.settings, dict):
            raise ValueError("it is no trial's record")
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{store.url}/{key} cannot be read ({error}): delete that trial's folder, and --resume runs it anew."
        ) from error
    return record


def find_best_record(records: Sequence[TrialRecord], *, higher_is_better: bool) -> TrialRecord | None:
    """The best finished trial; where none has finished, the best of those that have a score; None if none has."""
    scored = [r for r in records if r.score is not None and r.state in ("finished", "stopped", "running")]
    finished = [r for r in scored if r.state == "finished"]
    sign = 1 if higher_is_better else -1
    return max(finished or scored, key=lambda r: sign * (r.score or 0.0), default=None)
