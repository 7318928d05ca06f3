"""Writing a preset's built-in data is seen on a terminal, once."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from ali_dist.data.sources.base import StartTracking
from ali_dist.launchers import builtin_data
from tests.helpers.runs import tiny_config


class FakeTerminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_process_shows_how_far_the_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str) -> None:
    def prepare(source: str, url: str, *, start_tracking: StartTracking) -> bool:
        start_tracking(f"{source} train", 40)(40)
        return bool(url)

    stream = FakeTerminal()
    monkeypatch.setattr(builtin_data, "ensure_prepared", prepare)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("RANK", rank)
    builtin_data.prepare_builtin_data(tiny_config(tmp_path, data__source="digits"))
    assert ("40/40" in stream.getvalue()) == (rank == "0")
