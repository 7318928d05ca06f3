"""The arithmetic of the bench of launchers; the runs themselves are too long for a test."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.bench.launch import RunMeasurement, cpu_seconds, format_table, seconds_between, summarize_runs


def test_commands_are_compared_round_by_round():
    """The machine was twice as slow in the second round, for both."""
    runs = {
        "torchrun": [
            RunMeasurement([1.0, 2.0, 1.0], 1.5, 0.001, 0.01, 5.0),
            RunMeasurement([2.0], 1.5, 0.003, 0.03, 7.0),
        ],
        "ray": [RunMeasurement([1.1], 1.5, 0.01, 0.1, 20.0), RunMeasurement([2.2], 1.65, 0.01, 0.3, 22.0)],
    }
    result = summarize_runs("digits", runs)
    assert result["ratios"]["clock"] == pytest.approx([1.1, 1.1])
    assert result["ratios"]["worker CPU"] == pytest.approx([1.0, 1.1])
    ray = result["rows"][1]
    assert (ray["command"], ray["start_seconds"], ray["ms_by_round"]) == ("ray", 21.0, [1100.0, 2200.0])
    assert (ray["beside_percent"], ray["others_percent"]) == pytest.approx((1.0, 20.0))
    conditions = {"date": "2026-01-01", "cpu": "a CPU", "cores": 2, "torch": "2", "ray": "2"}
    shown = format_table({**result, "workers": 2, "conditions": conditions})
    assert "clock: 1.100 (1.100 to 1.100)" in shown
    head, *rows = shown.splitlines()[3:6]
    assert {len(row) for row in rows} == {len(head)}


def test_cpu_time_of_workers_and_of_all_else_is_kept_apart():
    busy = "import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy + '  # a worker'!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while sum((seconds := cpu_seconds(process.pid, "time.sleep(60)  # a worker"))[0].values()) < 0.2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert seconds[1] == 0
        threads, others = cpu_seconds(process.pid, "another worker")
        assert (threads, others > 0.1) == ({}, True)
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_the_thread_that_trains_is_the_busiest_of_the_time_that_counts():
    """The main thread of a worker has imported everything before training begins in another thread."""
    early = {(1, 1): 5.0, (1, 2): 1.0, (2, 1): 3.0}
    late = {(1, 1): 5.1, (1, 2): 9.0, (2, 1): 7.0, (2, 3): 0.3}
    assert seconds_between(early, late) == pytest.approx((8.1 + 4.3, 0.1 + 0.3))
