"""What a sweep's own bookkeeping costs a trial: records, results and pages as its driver keeps them, without Ray.

Trials are made up: each reports its evaluations at once. Ray's part, processes and placement, is not in it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ali_dist.storage.base import Store
from tests.bench.growth.panels import Curve, Panel
from tests.helpers.sweeps import small_plan, store_of
from tuning.html import write_sweep_page, write_trial_page
from tuning.results import write_results
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import load_records
from tuning.trial_tracker import END_REASON, END_STATE, TrialTracker

EVALUATIONS = 20  # of each trial
_WHOLE, _REPORTS, _PAGE = "a trial in all, CPU ms", "its reports, CPU ms", "results and page after the last, CPU ms"
_KEYS = {_WHOLE: "a trial", _REPORTS: "its reports", _PAGE: "the last page"}


def measure_trials(trials: Sequence[int]) -> list[Panel]:
    """CPU time and pages of sweeps of so many trials."""
    points: dict[str, list[tuple[float, float]]] = {}
    for number in trials:
        with tempfile.TemporaryDirectory() as folder:
            plan = small_plan(Path(folder), trials=number)
            store = store_of(plan)
            last: list[float] = []
            began = time.process_time()
            reports = _run_trials(plan, store, last)
            whole = time.process_time() - began
            began = time.process_time()
            load_records(store)
            page = store.stat("sweep.html")
            figures = {
                _WHOLE: 1e3 * whole / number,
                _REPORTS: 1e3 * reports / number,
                _PAGE: 1e3 * last[-1],
                "read for --resume, CPU ms a trial": 1e3 * (time.process_time() - began) / number,
                "sweep.html, kB": 0.0 if page is None else page.size / 1e3,
            }
        for name, value in figures.items():
            points.setdefault(name, []).append((number, value))
    return [
        Panel(
            title="Trials",
            x="trials of a sweep",
            y="CPU ms",
            curves=tuple(Curve(name, tuple(own), _KEYS.get(name, "")) for name, own in points.items()),
            remark=f"a sweep's records, results and pages, in a folder, {EVALUATIONS} evaluations a trial, without Ray",
        )
    ]


def _run_trials(plan: SweepPlan, store: Store, last: list[float]) -> float:
    """Let trials come and go as `tuning.runner` and Tune do; returns the CPU seconds of starts, reports and ends.

    Args:
        plan: The plan of the sweep.
        store: Its folder.
        last: Gets the CPU seconds of the results and pages after each trial.
    """
    tracker = TrialTracker(plan, store, [], lambda line: None, None)
    seconds = 0.0
    for number in range(plan.trials):
        trial, began = str(number), time.process_time()
        tracker.register_trial(trial, number, plan.settings_for_trial(number) or {}, {"CPU": 1.0})
        tracker.mark_started(trial)
        for evaluation in range(1, EVALUATIONS + 1):
            images = plan.budget * evaluation // EVALUATIONS
            score = 1 - 1 / (1 + evaluation + number % 7)
            report = {"images": images, "score": score, "high_quality": score, "reverse_kl": 0.1, "right_mode": 0.9}
            tracker.add_report(trial, report)
        tracker.add_report(trial, {END_STATE: "finished", END_REASON: ""})
        tracker.mark_ended(trial)
        ended = time.process_time()
        seconds += ended - began
        write_trial_page(store, tracker.copy_record(trial))
        write_results(plan, tracker.copy_records(), store)
        write_sweep_page(plan, tracker.copy_records(), store)
        last.append(time.process_time() - ended)
    return seconds
