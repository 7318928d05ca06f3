"""The check for machines with a GPU: time is divided well, and nothing measured is lost.

Run: `make test ARGS=tests/unit/gpu/test_check.py`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.gpu.check import __main__ as command
from tests.gpu.check import running
from tests.gpu.check.plan import PARTS, limit
from tests.gpu.check.task import Figures
from tests.helpers.processes import descendants_of

# ---- the plan -----------------------------------------------------------------------------------------------------


@given(budget=st.floats(0, 5000), used=st.lists(st.floats(0, 1), min_size=len(PARTS), max_size=len(PARTS)))
def test_parts_that_keep_their_limits_keep_the_budget(budget: float, used: list[float]) -> None:
    left = budget
    for number, share in enumerate(used):
        mine = limit(PARTS[number:], left)
        assert 0 <= mine <= left + 1e-6
        left -= mine * share
    assert left >= -1e-6


def test_what_a_part_leaves_over_passes_on_to_all_later_ones() -> None:
    wasteful = limit(PARTS[1:], 500 - limit(PARTS, 500))
    thrifty = limit(PARTS[1:], 500 - 1)
    assert thrifty > wasteful
    assert limit(PARTS[-1:], 42) == pytest.approx(42)


def test_late_parts_keep_their_reserve_when_every_earlier_one_uses_all_it_may() -> None:
    left = 500.0
    for number, part in enumerate(PARTS):
        mine = limit(PARTS[number:], left)
        assert mine >= part.least
        left -= mine


# ---- child processes ------------------------------------------------------------------------------------------------

Run = Callable[..., tuple[running.Outcome, list[int]]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a small program as a part; its outcome, and how many figures there were each time they were kept."""

    def child(program: str, limit: float = 60.0, stopped: Callable[[], bool] = lambda: False) -> Any:
        lines, kept = tmp_path / "lines", []
        start = f"import json, os, subprocess, sys, time\nlines = open({str(lines)!r}, 'a', buffering=1)\n"
        outcome = running.run_child(
            [sys.executable, "-c", start + textwrap.dedent(program)],
            lines,
            tmp_path / "log",
            limit,
            cwd=tmp_path,
            stopped=stopped,
            keep=lambda so_far: kept.append(len(so_far.figures)),
        )
        return outcome, kept

    return child


HANGING = """
    lines.write(json.dumps({"kind": "first"}) + "\\n")
    below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    lines.write(json.dumps({"kind": "pids", "pids": [os.getpid(), below.pid]}) + "\\n")
    lines.write('{"kind": "half a li')
    lines.flush()
    time.sleep(600)
"""


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _assert_ended(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while not all(map(_ended, pids)):
        assert time.monotonic() < deadline, "a process of the part is still there"
        time.sleep(0.02)


def test_a_part_that_hangs_is_ended_with_all_it_started_and_keeps_its_figures(run: Run) -> None:
    outcome, kept = run(HANGING, limit=3.0)
    assert (outcome.status, outcome.reason) == ("cut off", "its 3 s were over")
    assert [figure["kind"] for figure in outcome.figures] == ["first", "pids"]
    assert kept  # while it was still running
    _assert_ended(outcome.figures[1]["pids"])


def test_a_stop_ends_the_part_that_runs(run: Run, tmp_path: Path) -> None:
    def has_begun() -> bool:
        return (tmp_path / "lines").exists() and "half" in (tmp_path / "lines").read_text()

    outcome, _ = run(HANGING, stopped=has_begun)
    assert (outcome.status, outcome.reason, len(outcome.figures)) == ("cut off", "stopped on request", 2)
    _assert_ended(outcome.figures[1]["pids"])


def test_what_a_part_leaves_behind_is_ended_when_it_ends(run: Run) -> None:
    outcome, _ = run("""
        below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        lines.write(json.dumps({"kind": "pids", "pids": [below.pid]}) + "\\n")
    """)
    assert (outcome.status, outcome.reason) == ("ok", "")
    _assert_ended(outcome.figures[0]["pids"])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('all is lost'); sys.exit(3)", "ended with exit code 3: all is lost"),
        ("sys.stdout.flush(); os.kill(os.getpid(), 11)", "ended with SIGSEGV: it said nothing"),
        ('lines.write(\'{"kind": "failure", "what": "a cell", "why": "no memory"}\\n\')', "a cell: no memory"),
    ],
)
def test_a_part_that_fails_says_why(run: Run, program: str, reason: str) -> None:
    outcome, _ = run(program)
    assert (outcome.status, outcome.reason) == ("failed", reason)


def test_figures_reach_the_file_at_once_and_what_does_not_fit_is_one(tmp_path: Path) -> None:
    figures = Figures(tmp_path / "lines", time.monotonic() + 30)
    figures.add("speed", value=1.5)
    assert figures.fits("short", 1)
    assert not figures.fits("long", 100)
    figures.fail("cell", ValueError("first line\nsecond"))
    found = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [f["kind"] for f in found] == ["speed", "not begun", "failure"]
    assert (found[1]["what"], found[1]["needs"]) == ("long", 100)
    assert found[2]["why"] == "ValueError: first line"


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("--budget 3", ["--budget", "'3'", "5"]),
        ("--budget soon", ["--budget", "'soon'"]),
        ("--parts tests,stp", ["--parts", "'stp'", "quality"]),
        ("--device tpu", ["--device", "tpu"]),
        ("--fast", ["--fast"]),
    ],
)
def test_wrong_arguments_are_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], words: str, names: list[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command.main(words.split())
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for name in names:
        assert name in said


def test_places_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert command.main(["--device", "cpu", "--out", str(tmp_path / "file" / "out")]) == 2
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
        assert "--device is cuda" in capsys.readouterr().err


def test_parts_run_in_the_order_of_their_worth() -> None:
    assert [part.name for part in command._parts("roof,tests")] == ["tests", "roof"]


def test_a_ctrl_c_keeps_what_is_there_and_prints_the_table(tmp_path: Path) -> None:
    """And parts that were not begun are named, too."""
    words = ["--device", "cpu", "--budget", "300", "--out", str(tmp_path / "out"), "--parts", "roof,quality"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.check", *words],
        cwd=command.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    results = tmp_path / "out" / "results.json"
    deadline = time.monotonic() + 120
    while not (results.exists() and json.loads(results.read_text())["parts"].get("quality", {}).get("figures")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.terminate()
    shown, _ = process.communicate(timeout=30)
    parts = json.loads(results.read_text())["parts"]
    assert process.returncode == 1
    assert parts["quality"]["status"] == "cut off"
    assert parts["roof"]["status"] == "not begun"
    assert "stopped on request" in shown


def test_a_check_that_is_killed_leaves_no_part_on_the_device(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--budget", "300", "--out", str(tmp_path), "--parts", "quality"]
    start = [sys.executable, "-m", "tests.gpu.check", *words]
    process = subprocess.Popen(start, cwd=command.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "results.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = descendants_of(process.pid)
    assert started
    process.kill()
    process.wait()
    _assert_ended(started)


def test_make_gpu_installs_nothing(tmp_path: Path) -> None:
    """On a bare machine it takes the Python that is there, and where there is a .venv, that one."""
    (tmp_path / "Makefile").write_text((command.ROOT / "Makefile").read_text(encoding="utf-8"), encoding="utf-8")
    tools = tmp_path / "tools"
    tools.mkdir()
    for place in (tools / "python3", tmp_path / ".venv" / "bin" / "python"):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text('#!/bin/sh\necho "$0 $*"\n', encoding="utf-8")
        place.chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def make() -> str:
        done = subprocess.run(
            ["make", "gpu", "ARGS=--budget 7"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert make() == ".venv/bin/python -m tests.gpu.check --budget 7"
    (tmp_path / ".venv" / "bin" / "python").unlink()
    assert make().endswith("tools/python3 -m tests.gpu.check --budget 7")
