"""A sweep while it runs: Ray Tune in a thread of its own, the terminal and the signals in the main thread."""

from __future__ import annotations

import threading
import time

from ali_dist.config.wording import format_count
from ali_dist.launchers.signals import run_beside_main_thread
from ali_dist.storage.base import Store
from tuning.html import write_sweep_page, write_trial_page
from tuning.live_table import LiveTable
from tuning.ray_tune import run_trials
from tuning.resources import TrialResources
from tuning.results import write_results
from tuning.searchers import Suggester
from tuning.sweep_plan import SweepPlan
from tuning.trial_record import TrialRecord
from tuning.trial_tracker import TrialTracker

_DRAW_SECONDS = 0.5


def run_sweep(
    plan: SweepPlan,
    store: Store,
    records: list[TrialRecord],
    *,
    resources: TrialResources,
    trials_at_once: int,
    suggester: Suggester | None,
    seconds: float | None,
) -> tuple[TrialTracker, bool]:
    """Run all trials that have not ended, on the Ray cluster that this process is connected to.

    Args:
        plan: The plan of the sweep.
        store: The sweep's folder.
        records: What earlier drivers left there.
        resources: What each trial takes.
        trials_at_once: How many trials run at the same time.
        suggester: Where settings come from, if not from the plan.
        seconds: After how long the sweep ends; None: never.

    Returns:
        What is known of all trials, and whether a signal asked to stop.
    """
    table = LiveTable(plan, trials_at_once)
    deadline = None if seconds is None else time.monotonic() + seconds
    tracker = TrialTracker(plan, store, records, table.write_line, deadline)
    stop_event = threading.Event()

    def request_stop() -> None:
        stop_event.set()
        tracker.halt()

    def write_pages(record: TrialRecord) -> None:
        if suggester is not None:
            suggester.tell(record)
        write_trial_page(store, record)
        write_results(plan, tracker.copy_records(), store)
        write_sweep_page(plan, tracker.copy_records(), store)

    def run_on_tune() -> None:
        run_trials(
            plan,
            tracker,
            store,
            resources=resources,
            trials_at_once=trials_at_once,
            suggester=suggester,
            on_trial_end=write_pages,
        )

    stop_is_shown = False

    def draw() -> None:
        nonlocal stop_is_shown
        if tracker.is_halted() and not stop_is_shown:
            stop_is_shown = True
            reason = "Stopping" if stop_event.is_set() else "The time is over"
            table.show_note(f"{reason}: running trials save a checkpoint; Ctrl-C ends at once.")
        table.draw(tracker.copy_records())

    table.write_line(
        f"{plan.describe()}\n{format_count(len(tracker.list_waiting()), 'trial')} to run, {trials_at_once} at once."
    )
    table.start()
    try:
        run_beside_main_thread(
            run_on_tune, request_stop=request_stop, on_poll=draw, poll_seconds=_DRAW_SECONDS, name="tune"
        )
    finally:
        table.stop()
    return tracker, stop_event.is_set()
