"""The check for machines with a GPU divides its time well and loses nothing that was measured.

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
from tests.gpu.check.plan import PARTS, allot_seconds
from tests.gpu.check.task import FigureWriter
from tests.helpers.processes import descendants_of

# ---- the plan -----------------------------------------------------------------------------------------------------


@given(budget=st.floats(0, 5000), used=st.lists(st.floats(0, 1), min_size=len(PARTS), max_size=len(PARTS)))
def test_parts_that_keep_their_limits_keep_the_budget(budget: float, used: list[float]) -> None:
    seconds_left = budget
    for number, share in enumerate(used):
        allotted = allot_seconds(PARTS[number:], seconds_left)
        assert 0 <= allotted <= seconds_left + 1e-6
        seconds_left -= allotted * share
    assert seconds_left >= -1e-6


def test_time_that_a_part_does_not_use_passes_on_to_the_later_ones() -> None:
    after_all_was_used = allot_seconds(PARTS[1:], 500 - allot_seconds(PARTS, 500))
    after_a_second = allot_seconds(PARTS[1:], 500 - 1)
    assert after_a_second > after_all_was_used
    assert allot_seconds(PARTS[-1:], 42) == pytest.approx(42)


def test_late_parts_keep_their_reserve_if_every_earlier_one_uses_all_its_time() -> None:
    seconds_left = 500.0
    for number, part in enumerate(PARTS):
        allotted = allot_seconds(PARTS[number:], seconds_left)
        assert allotted >= part.reserved_seconds
        seconds_left -= allotted


def test_results_name_the_command_without_the_folder_of_this_machine() -> None:
    words = ["--budget", "300", "--out", "/home/me/results", "--parts", "step,roof", "--out=/home/me/others"]
    assert command._describe_command(words) == "python -m tests.gpu.check --budget 300 --parts step,roof"


# ---- child processes ------------------------------------------------------------------------------------------------

RunProgram = Callable[..., tuple[running.PartOutcome, list[int]]]


@pytest.fixture
def run_program(tmp_path: Path) -> RunProgram:
    """Run a small program as a part; returns its outcome, and the number of figures at each report of new ones."""

    def run(program: str, limit: float = 60.0, stop_requested: Callable[[], bool] = lambda: False) -> Any:
        figure_file = tmp_path / "figures"
        reported: list[int] = []
        imports = "import json, os, subprocess, sys, time\n"
        opening = f"figures = open({str(figure_file)!r}, 'a', buffering=1)\n"
        outcome = running.run_child(
            [sys.executable, "-c", imports + opening + textwrap.dedent(program)],
            figure_file,
            tmp_path / "log",
            limit,
            cwd=tmp_path,
            stop_requested=stop_requested,
            on_new_figures=lambda outcome: reported.append(len(outcome.figures)),
        )
        return outcome, reported

    return run


HANGING_PROGRAM = """
    figures.write(json.dumps({"kind": "first"}) + "\\n")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    figures.write(json.dumps({"kind": "pids", "pids": [os.getpid(), sleeper.pid]}) + "\\n")
    figures.write('{"kind": "half a li')
    figures.flush()
    time.sleep(600)
"""


def _has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _assert_have_ended(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while not all(map(_has_ended, pids)):
        assert time.monotonic() < deadline, "a process of the part is still running"
        time.sleep(0.02)


def test_a_part_that_hangs_is_killed_with_all_its_processes_and_keeps_its_figures(run_program: RunProgram) -> None:
    outcome, reported = run_program(HANGING_PROGRAM, limit=3.0)
    assert (outcome.status, outcome.reason) == ("cut off", "its 3 s were over")
    assert [figure["kind"] for figure in outcome.figures] == ["first", "pids"]
    assert reported  # while it was still running
    _assert_have_ended(outcome.figures[1]["pids"])


def test_a_stop_request_kills_the_part_that_runs(run_program: RunProgram, tmp_path: Path) -> None:
    def has_begun() -> bool:
        return (tmp_path / "figures").exists() and "half" in (tmp_path / "figures").read_text()

    outcome, _ = run_program(HANGING_PROGRAM, stop_requested=has_begun)
    assert (outcome.status, outcome.reason, len(outcome.figures)) == ("cut off", "stopped on request", 2)
    _assert_have_ended(outcome.figures[1]["pids"])


def test_processes_that_a_part_leaves_behind_are_killed_when_it_ends(run_program: RunProgram) -> None:
    outcome, _ = run_program("""
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        figures.write(json.dumps({"kind": "pids", "pids": [sleeper.pid]}) + "\\n")
    """)
    assert (outcome.status, outcome.reason) == ("ok", "")
    _assert_have_ended(outcome.figures[0]["pids"])


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('all is lost'); sys.exit(3)", "ended with exit code 3: all is lost"),
        ("sys.stdout.flush(); os.kill(os.getpid(), 11)", "ended with SIGSEGV: it said nothing"),
        ('figures.write(\'{"kind": "failure", "what": "a cell", "why": "no memory"}\\n\')', "a cell: no memory"),
    ],
)
def test_a_part_that_fails_says_why(run_program: RunProgram, program: str, reason: str) -> None:
    outcome, _ = run_program(program)
    assert (outcome.status, outcome.reason) == ("failed", reason)


def test_figures_are_written_at_once_and_one_says_what_there_was_no_time_for(tmp_path: Path) -> None:
    figures = FigureWriter(tmp_path / "figures", time.monotonic() + 30)
    figures.add("speed", value=1.5)
    assert figures.has_time_for("short", 1)
    assert not figures.has_time_for("long", 100)
    figures.add_failure("cell", ValueError("first line\nsecond"))
    written = [json.loads(line) for line in (tmp_path / "figures").read_text().splitlines()]
    assert [figure["kind"] for figure in written] == ["speed", "not begun", "failure"]
    assert (written[1]["what"], written[1]["needs"]) == ("long", 100)
    assert written[2]["why"] == "ValueError: first line"


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ("--budget 3", ["--budget", "'3'", "5"]),
        ("--budget soon", ["--budget", "'soon'"]),
        ("--parts tests,stp", ["--parts", "'stp'", "quality"]),
        ("--device tpu", ["--device", "tpu"]),
        ("--fast", ["--fast"]),
    ],
)
def test_wrong_arguments_end_with_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], options: str, parts: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(options.split())
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in parts:
        assert part in message


def test_a_folder_that_cannot_be_made_and_a_device_that_is_absent_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert command.main(["--device", "cpu", "--out", str(tmp_path / "file" / "out")]) == 2
    if not torch.cuda.is_available():
        assert command.main(["--device", "cuda", "--out", str(tmp_path)]) == 2
        assert "--device is cuda" in capsys.readouterr().err


def test_parts_run_in_the_order_of_the_plan_whatever_the_order_of_the_option() -> None:
    assert [part.name for part in command._parse_parts("roof,tests")] == ["tests", "roof"]


def test_a_check_that_is_stopped_keeps_its_figures_and_prints_the_table(tmp_path: Path) -> None:
    """The results also name the parts that were not begun."""
    options = ["--device", "cpu", "--budget", "300", "--out", str(tmp_path / "out"), "--parts", "roof,quality"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.check", *options],
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
    output, _ = process.communicate(timeout=30)
    parts = json.loads(results.read_text())["parts"]
    assert process.returncode == 1
    assert parts["quality"]["status"] == "cut off"
    assert parts["roof"]["status"] == "not begun"
    assert "stopped on request" in output


def test_a_check_that_is_killed_leaves_no_part_on_the_device(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--budget", "300", "--out", str(tmp_path), "--parts", "quality"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.gpu.check", *options],
        cwd=command.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "results.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = descendants_of(process.pid)
    assert started
    process.kill()
    process.wait()
    _assert_have_ended(started)


def test_make_gpu_installs_nothing(tmp_path: Path) -> None:
    """It uses the Python of the .venv where there is one, and otherwise the machine's own."""
    (tmp_path / "Makefile").write_text((command.ROOT / "Makefile").read_text(encoding="utf-8"), encoding="utf-8")
    tools = tmp_path / "tools"
    tools.mkdir()
    for python in (tools / "python3", tmp_path / ".venv" / "bin" / "python"):
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text('#!/bin/sh\necho "$0 $*"\n', encoding="utf-8")
        python.chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}

    def make_gpu() -> str:
        done = subprocess.run(
            ["make", "gpu", "ARGS=--budget 7"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    assert make_gpu() == ".venv/bin/python -m tests.gpu.check --budget 7"
    (tmp_path / ".venv" / "bin" / "python").unlink()
    assert make_gpu().endswith("tools/python3 -m tests.gpu.check --budget 7")
