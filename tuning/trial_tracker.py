"""The book of a running sweep: which trial is where, and why it ended. Kept by the driver, on disk at every change.

Ray Tune's thread writes it; the main thread reads it for the table on the terminal.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from ali_dist.storage.base import Store
from tuning.score import describe_collapse
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import ENDED, TrialRecord, TrialStatus, save_record

_OURS = ("images", "score")


class TrialTracker:
    """All trials of a sweep.

    Args:
        plan: Of the sweep.
        store: Its folder.
        records: What earlier drivers left.
        say: Gets one line for each thing that happens.
        deadline: Clock of `time.monotonic` at which the sweep ends; None: never.
    """

    def __init__(
        self,
        plan: SweepPlan,
        store: Store,
        records: Sequence[TrialRecord],
        say: Callable[[str], None],
        deadline: float | None,
    ) -> None:
        self._plan, self._store, self._say, self._deadline = plan, store, say, deadline
        self._metric, self._budget = plan.judge(), plan.budget()
        self._lock = threading.Lock()
        self._records = {record.number: record for record in records}
        self._begun: dict[int, tuple[float, float]] = {}  # number: seconds before, clock at its start
        self._numbers: dict[str, int] = {}  # of Tune's trial ids
        self._verdicts: dict[int, tuple[TrialStatus, str]] = {}
        self._halt = threading.Event()

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles what it is given for a restore of its own, which is never used."""
        return {}

    def records(self) -> list[TrialRecord]:
        """A copy of all, by number."""
        with self._lock:
            for number, (before, start) in self._begun.items():
                self._records[number].seconds = before + time.monotonic() - start
            return [copy.deepcopy(self._records[number]) for number in sorted(self._records)]

    def waiting(self) -> list[int]:
        """Numbers of trials that are still to be run, those first that have begun before."""
        with self._lock:
            begun = [n for n, r in sorted(self._records.items()) if r.state not in ENDED]
            return begun + [n for n in range(self._plan.trials) if n not in self._records]

    def halt(self) -> None:
        """End the sweep: nothing new starts, and what runs saves its state for a resume. Safe in a signal handler."""
        self._halt.set()

    def busy(self) -> bool:
        """Whether any trial runs."""
        with self._lock:
            return bool(self._begun)

    def halted(self) -> bool:
        """Whether the sweep was asked to end, or its time is over."""
        return self._halt.is_set() or (self._deadline is not None and time.monotonic() >= self._deadline)

    def enrol(
        self, trial_id: str, number: int, settings: dict[str, Any], held: dict[str, float] | None = None
    ) -> TrialRecord:
        """Trial `number` will run under Tune's id and hold these resources; its record."""
        with self._lock:
            self._numbers[trial_id] = number
            record = self._records.setdefault(number, TrialRecord(number=number, settings=settings))
            record.held = held or {}
            return record

    def start(self, trial_id: str) -> None:
        """It runs now, or again."""
        with self._lock:
            record = self._of(trial_id)
            record.state, record.reason = "running", ""
            self._begun[record.number] = (record.seconds, time.monotonic())
            save_record(self._store, record)
            begins = f"goes on after {record.images:,} images" if record.images else "starts"
            self._say(f"trial {record.number} {begins}: {format_settings(record.settings)}")

    def result(self, trial_id: str, result: dict[str, Any]) -> bool:
        """It reports; whether it must stop, because it has collapsed or gives nothing to compare."""
        with self._lock:
            record = self._of(trial_id)
            if result.get("ended"):
                state: TrialStatus = "running" if result["ended"] == "saved" else result["ended"]
                self._verdicts[record.number] = (state, result["reason"])
                return False
            metrics = {k: float(v) for k, v in result.items() if k in _OURS or k in self._plan_metrics(result)}
            reason = describe_collapse(metrics, metrics["images"] / self._budget)
            lacking = [part for part in self._metric.parts if part not in metrics]
            if reason is not None:
                self._verdicts[record.number] = ("pruned", f"collapsed: {reason}")
            elif lacking:
                reason = f"evaluation of these data gives no {lacking[0]}: choose another --metric"
                self._verdicts[record.number] = ("failed", reason)
            finite = {k: v for k, v in metrics.items() if abs(v) < float("inf")}  # a NaN compares with nothing
            known = any(e["images"] == finite["images"] for e in record.evaluations)
            record.add(finite)
            save_record(self._store, record)
            if not known:
                self._say(f"trial {record.number} at {record.images:,} images: {self._shown(record)}")
            return reason is not None

    def end(self, trial_id: str, error: str | None = None) -> bool:
        """It has ended; whether that is its end (an interrupted one is resumed later)."""
        with self._lock:
            record = self._of(trial_id)
            before, start = self._begun.pop(record.number, (record.seconds, time.monotonic()))
            record.seconds = before + time.monotonic() - start
            verdict = self._verdicts.pop(record.number, None)
            if verdict is not None and verdict[0] == "running":
                self._say(f"trial {record.number} has saved a checkpoint and waits for --resume")
            elif verdict is not None:
                record.state, record.reason = verdict
            elif self.halted():  # cut off: it goes on from its newest checkpoint
                pass
            elif error is not None:
                record.state, record.reason = "failed", error
            else:
                record.state, record.reason = "stopped", "behind the others"
            save_record(self._store, record)
            if record.state in ENDED:
                why = f" ({record.reason})" if record.reason else ""
                self._say(f"trial {record.number} {record.state}{why}: {self._shown(record)}")
            return record.state in ENDED

    def record(self, trial_id: str) -> TrialRecord:
        """A copy of the record under Tune's id."""
        with self._lock:
            return copy.deepcopy(self._of(trial_id))

    def fail(self, trial_id: str, reason: str) -> None:
        """It will count as failed, for this reason."""
        with self._lock:
            self._verdicts[self._numbers[trial_id]] = ("failed", reason)

    def _of(self, trial_id: str) -> TrialRecord:
        return self._records[self._numbers[trial_id]]

    @staticmethod
    def _plan_metrics(result: dict[str, Any]) -> set[str]:
        """Keys of the evaluation's metrics among what Tune adds to a result."""
        ray_keys = {"timestamp", "done", "training_iteration", "pid", "iterations_since_restore", "time_since_restore"}
        ray_keys |= {"time_this_iter_s", "time_total_s", "checkpoint_dir_name"}
        return {k for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)} - ray_keys

    def _shown(self, record: TrialRecord) -> str:
        score = "no score" if record.score is None else f"{self._metric.title} {record.score:.4g}"
        parts = [f"{part} {record.metrics[part]:.4g}" for part in self._metric.parts if part in record.metrics]
        return score if len(self._metric.parts) == 1 or not parts else f"{score} ({', '.join(parts)})"


def format_settings(settings: dict[str, Any]) -> str:
    """Settings in one line."""
    return " ".join(f"{name}={'none' if value is None else value}" for name, value in settings.items())
