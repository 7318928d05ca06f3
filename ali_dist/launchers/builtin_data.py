"""Built-in data of a preset, written as a run begins."""

from __future__ import annotations

import os
from contextlib import nullcontext

from ali_dist.config import Config
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.data.sources.base import track_nothing
from ali_dist.report.terminal import show_progress_bars


def prepare_builtin_data(config: Config) -> None:
    """Write a preset's built-in data to data.url if nothing is there yet, and show how far that is on one process."""
    if config.data.source is None:
        return
    is_shown = os.environ.get("RANK", "0") == "0"
    with show_progress_bars("preparing the data") if is_shown else nullcontext(track_nothing) as start_tracking:
        ensure_prepared(config.data.source, config.data.url, start_tracking=start_tracking)
