"""A sweep while it runs: Ray Tune in a thread of its own, the terminal and the signals in the main one."""

from __future__ import annotations

import threading
import time

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
    need: TrialResources,
    at_once: int,
    adviser: Suggester | None,
    seconds: float | None,
) -> tuple[TrialTracker, bool]:
    """Run all trials that have not ended, on the Ray that this process is connected to.

    Args:
        plan, store, records: The sweep, its folder, and what earlier drivers left there.
        need, at_once: Of one trial, and how many run at the same time.
        adviser: Where settings come from, if not from the plan.
        seconds: After which it ends; None: never.

    Returns: what is known of all trials, and whether a signal asked to stop.
    """
    screen, asked = LiveTable(plan, at_once), threading.Event()
    book = TrialTracker(plan, store, records, screen.say, None if seconds is None else time.monotonic() + seconds)

    def ended(record: TrialRecord) -> None:
        if adviser is not None:
            adviser.tell(record)
        write_trial_page(store, record)
        write_results(plan, book.records(), store)
        write_sweep_page(plan, book.records(), store)

    def halt() -> None:
        asked.set()
        book.halt()

    def work() -> None:
        run_trials(plan, book, store, need=need, at_once=at_once, adviser=adviser, ended=ended)

    stop_shown = False

    def show() -> None:
        nonlocal stop_shown
        if book.halted() and not stop_shown:
            stop_shown = True
            reason = "Stopping: " if asked.is_set() else "The time is over: "
            screen.note(f"{reason}running trials save a checkpoint; Ctrl-C ends at once.")
        screen.draw(book.records())

    screen.say(f"{plan.described()}\n{len(book.waiting())} trials to run, {at_once} at once.")
    screen.open()
    try:
        run_beside_main_thread(work, request_stop=halt, on_poll=show, poll_seconds=_DRAW_SECONDS, name="tune")
    finally:
        screen.close()
    return book, asked.is_set()
