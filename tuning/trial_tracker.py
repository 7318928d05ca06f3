"""The state of a running sweep: which trial is where, and why it ended. Kept by the driver, on disk at every change.

Ray Tune's thread changes it; the main thread reads it for the table on the terminal.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ali_dist.storage.base import Store
from tuning.score import describe_collapse
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord, TrialStatus, save_record

SCORE = "score"
"""Key of an evaluation's score in what a trial reports."""
END_STATE = "ended"
"""Key of how the trial has ended, in its last report: a `TrialStatus`, or `SAVED`."""
END_REASON = "reason"
"""Key of why it has ended, in its last report."""
SAVED = "saved"
"""How a trial ends that has saved a checkpoint because the sweep ends: a resume goes on from there."""

_RAY_KEYS = {
    "timestamp",
    "done",
    "training_iteration",
    "pid",
    "iterations_since_restore",
    "time_since_restore",
    "time_this_iter_s",
    "time_total_s",
    "checkpoint_dir_name",
}
"""Numbers that Tune adds to a report."""


class TrialTracker:
    """All trials of a sweep. Safe to use from several threads.

    Args:
        plan: The plan of the sweep.
        store: The sweep's folder.
        records: What earlier drivers left.
        write_line: Gets one line for each thing that happens.
        deadline: When the sweep ends, on the clock of `time.monotonic`; None: never.
    """

    def __init__(
        self,
        plan: SweepPlan,
        store: Store,
        records: Sequence[TrialRecord],
        write_line: Callable[[str], None],
        deadline: float | None,
    ) -> None:
        self._plan = plan
        self._store = store
        self._write_line = write_line
        self._deadline = deadline
        self._metric = plan.score_metric
        self._budget = plan.budget
        self._lock = threading.Lock()
        self._records = {record.number: record for record in records}
        self._numbers: dict[str, int] = {}  # of trials, by Tune's ids
        self._running: dict[int, tuple[float, float]] = {}  # by number: seconds in earlier drivers, clock at the start
        self._outcomes: dict[int, tuple[TrialStatus, str]] = {}  # by number: how the trial will have ended, and why
        self._halt_event = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given for a restore of its own, which is never used."""
        return {}

    def copy_records(self) -> list[TrialRecord]:
        """A copy of all records, by number."""
        with self._lock:
            for number, (seconds_before, start) in self._running.items():
                self._records[number].seconds = seconds_before + time.monotonic() - start
            return [self._records[number].copy() for number in sorted(self._records)]

    def copy_record(self, trial_id: str) -> TrialRecord:
        """A copy of the record of the trial with this id of Tune's."""
        with self._lock:
            return self._find_record(trial_id).copy()

    def list_waiting(self) -> list[int]:
        """Numbers of the trials that are still to be run; those that have begun before come first."""
        with self._lock:
            begun = [number for number, record in sorted(self._records.items()) if not record.has_ended]
            return begun + [number for number in range(self._plan.trials) if number not in self._records]

    def halt(self) -> None:
        """End the sweep: nothing new starts, and running trials save their state. Safe in a signal handler."""
        self._halt_event.set()

    def is_halted(self) -> bool:
        """Whether the sweep was asked to end, or its time is over."""
        return self._halt_event.is_set() or (self._deadline is not None and time.monotonic() >= self._deadline)

    def is_any_running(self) -> bool:
        """Whether any trial runs now."""
        with self._lock:
            return bool(self._running)

    def register_trial(
        self, trial_id: str, number: int, settings: dict[str, Any], held: dict[str, float] | None = None
    ) -> TrialRecord:
        """Note which trial will run under an id of Tune's.

        Args:
            trial_id: Tune's id.
            number: The trial's number.
            settings: Its searched settings.
            held: The resources that it will hold.

        Returns:
            Its record, an earlier driver's if there is one.
        """
        with self._lock:
            self._numbers[trial_id] = number
            record = self._records.setdefault(number, TrialRecord(number=number, settings=settings))
            record.held = held or {}
            return record

    def mark_started(self, trial_id: str) -> None:
        """Note that a trial runs now, or again."""
        with self._lock:
            record = self._find_record(trial_id)
            record.state = "running"
            record.reason = ""
            self._running[record.number] = (record.seconds, time.monotonic())
            save_record(self._store, record)
            event = f"goes on after {record.images:,} images" if record.images else "starts"
            self._write_line(f"trial {record.number} {event}: {format_settings(record.settings)}")

    def add_report(self, trial_id: str, report: dict[str, Any]) -> bool:
        """Note what a trial reports: an evaluation, or how it ended.

        Returns:
            Whether the trial must stop, because it has collapsed or has nothing to be compared by.
        """
        with self._lock:
            record = self._find_record(trial_id)
            if report.get(END_STATE):
                state: TrialStatus = "running" if report[END_STATE] == SAVED else report[END_STATE]
                self._outcomes[record.number] = (state, report[END_REASON])
                return False
            evaluation = _evaluation_in_report(report)
            self._add_evaluation(record, evaluation)
            outcome = self._outcome_of_evaluation(evaluation)
            if outcome is not None:
                self._outcomes[record.number] = outcome
            return outcome is not None

    def _add_evaluation(self, record: TrialRecord, evaluation: dict[str, float]) -> None:
        finite = {key: value for key, value in evaluation.items() if math.isfinite(value)}
        is_repeated = any(earlier["images"] == finite["images"] for earlier in record.evaluations)
        record.add_evaluation(finite)
        save_record(self._store, record)
        if not is_repeated:
            self._write_line(f"trial {record.number} at {record.images:,} images: {self._format_score(record)}")

    def _outcome_of_evaluation(self, evaluation: dict[str, float]) -> tuple[TrialStatus, str] | None:
        collapse = describe_collapse(evaluation, evaluation["images"] / self._budget)
        if collapse is not None:
            return "pruned", f"collapsed: {collapse}"
        missing = [part for part in self._metric.parts if part not in evaluation]
        if missing:
            return "failed", f"evaluation of these data gives no {missing[0]}: choose another --metric"
        return None

    def mark_failed(self, trial_id: str, reason: str) -> None:
        """Note that a trial will count as failed once it ends, for this reason."""
        with self._lock:
            self._outcomes[self._numbers[trial_id]] = ("failed", reason)

    def mark_ended(self, trial_id: str, error: str | None = None) -> bool:
        """Note that a trial's process has ended.

        Args:
            trial_id: Tune's id.
            error: What was wrong, if Tune gave it up.

        Returns:
            Whether that is the trial's end; one that was interrupted is resumed later.
        """
        with self._lock:
            record = self._find_record(trial_id)
            seconds_before, start = self._running.pop(record.number, (record.seconds, time.monotonic()))
            record.seconds = seconds_before + time.monotonic() - start
            outcome = self._outcomes.pop(record.number, None)
            if outcome is not None and outcome[0] == "running":
                self._write_line(f"trial {record.number} has saved a checkpoint and waits for --resume")
            elif outcome is not None:
                record.state, record.reason = outcome
            elif self.is_halted():  # the trial was cut off: it goes on from its newest checkpoint
                pass
            elif error is not None:
                record.state, record.reason = "failed", error
            else:
                record.state, record.reason = "stopped", "behind the others"
            save_record(self._store, record)
            if record.has_ended:
                reason = f" ({record.reason})" if record.reason else ""
                self._write_line(f"trial {record.number} {record.state}{reason}: {self._format_score(record)}")
            return record.has_ended

    def _find_record(self, trial_id: str) -> TrialRecord:
        return self._records[self._numbers[trial_id]]

    def _format_score(self, record: TrialRecord) -> str:
        score = "no score" if record.score is None else f"{self._metric.title} {record.score:.4g}"
        parts = [f"{part} {record.metrics[part]:.4g}" for part in self._metric.parts if part in record.metrics]
        return score if len(self._metric.parts) == 1 or not parts else f"{score} ({', '.join(parts)})"


def _evaluation_in_report(report: dict[str, Any]) -> dict[str, float]:
    """The images, the score and the metrics of a report, without what Tune adds."""
    numbers = {k: v for k, v in report.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {key: float(value) for key, value in numbers.items() if key not in _RAY_KEYS}


def format_settings(settings: dict[str, Any]) -> str:
    """Settings in one line."""
    return " ".join(f"{name}={'none' if value is None else value}" for name, value in settings.items())
