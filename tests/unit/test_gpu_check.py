"""The check for machines with a GPU: time is divided well, nothing measured is lost, and its texts can be read.

Run: `make test ARGS=tests/unit/test_gpu_check.py`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from tests.bench import step as bench
from tests.gpu.check import __main__ as command
from tests.gpu.check import document, running
from tests.gpu.check.parts import step as step_part
from tests.gpu.check.parts.profile import events_of, summarise
from tests.gpu.check.plan import PARTS, limit
from tests.gpu.check.runs import Speed
from tests.gpu.check.table import MOST_LINES, table
from tests.gpu.check.task import Figures
from tests.helpers.processes import below

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
    started = below(process.pid)
    assert started
    process.kill()
    process.wait()
    _assert_ended(started)


# ---- figures --------------------------------------------------------------------------------------------------------


def test_operations_are_those_of_torchs_own_counter() -> None:
    """Which cannot count steps with penalties; there ours counts more than without."""
    cpu = torch.device("cpu")
    mine = step_part.operations("cifar10", cpu, step_part.TINY)
    settings = bench.Settings(preset="cifar10", batch=step_part.COUNTED, precision="fp32")
    for contestant in bench.make_contestants(settings, cpu, **step_part.TINY):
        with FlopCounterMode(display=False) as counter:
            contestant.update()
        assert mine[contestant.name] * step_part.COUNTED == counter.get_total_flops()
    without = {**step_part.TINY, "objective.r1": 0, "objective.r2": 0}
    assert (
        step_part.operations("digits", cpu, step_part.TINY)["alternating"]
        > step_part.operations("digits", cpu, without)["alternating"]
        > 0
    )


def test_cells_are_in_order_of_worth_and_name_steps_that_exist() -> None:
    found = step_part.cells(tiny=False)
    assert [(c.preset, c.batch, c.precision, c.compile) for c in found[:2]] == [
        ("cifar10", 100, "bf16", False),
        ("cifar10", 100, "fp32", False),
    ]
    assert all(a.compile <= b.compile for a, b in pairwise(found))
    assert len(set(map(str, found))) == len(found)
    for cell in found:
        config = bench._config(bench.Settings(preset=cell.preset, batch=cell.batch, precision=cell.precision))
        assert set(cell.steps or ()) <= set(bench.ways_for(config))


def test_busy_time_counts_overlapping_kernels_once(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = [
        {"ph": "X", "cat": "kernel", "name": "a", "ts": 0, "dur": 10},
        {"ph": "X", "cat": "kernel", "name": "b", "ts": 5, "dur": 10},
        {"ph": "X", "cat": "gpu_memcpy", "name": "copy", "ts": 20, "dur": 5},
        {"ph": "X", "cat": "kernel", "name": "a", "ts": 30, "dur": 10},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "Optimizer.step", "ts": 0, "dur": 40},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mul", "ts": 0, "dur": 40},
        {"ph": "M", "cat": "kernel", "name": "process_name"},
    ]
    trace = tmp_path / "trace.json"
    trace.write_text(json.dumps({"traceEvents": events}))
    found = summarise(events_of(trace, ("kernel", "gpu_memcpy", "gpu_memset")), 2, 50e-6)
    assert found["busy"] == pytest.approx(15e-6)  # of 2 updates: (15 + 5 + 10) / 2
    assert found["gaps"] == pytest.approx(35e-6)
    assert found["events"] == 2
    assert found["top"][0] == {"name": "a", "seconds": pytest.approx(10e-6), "count": 1.0}


def test_the_first_record_of_a_run_does_not_count_for_its_speed() -> None:
    records = [{"images_per_second": speed, "data_wait": 0.1} for speed in (1.0, 100.0, 300.0, 200.0)]
    assert Speed.of(records).images_per_second == 200.0
    assert Speed.of(records[:1]).images_per_second == 1.0


# ---- texts ----------------------------------------------------------------------------------------------------------


def full_results() -> dict[str, Any]:
    """More than a whole check on a GPU could bring, every part with a trouble of its own."""
    row = {"images_per_second": 12_345.6, "seconds_per_update": 0.0081, "ratio": 1.5, "ratio_min": 1.4}
    row |= {"ratio_max": 1.6, "peak_bytes": 2_000_000_000, "flops_per_image": 3e9}
    steps = ("usual", "usual, our layers", "scaled", "coupled", "alternating")
    cells = [
        {
            "kind": "cell",
            "settings": {"preset": preset, "batch": batch, "compile": compiled},
            "conditions": {"precision": precision},
            "rows": [{"step": step, **row} for step in steps],
        }
        for preset in ("cifar10", "svhn", "celeba", "digits")
        for batch in (100, 1024)
        for precision in ("bf16", "fp32")
        for compiled in (False, True)
    ]
    machine = {"gpu": "A GPU", "gpu_memory": 80 * 2**30, "cpu": "A CPU", "cores": 16, "torch": "2.11.0", "cuda": "13.0"}
    tests = [
        {
            "kind": "test",
            "name": f"test_a.py::test_{n}",
            "outcome": outcome,
            "reason": f"reason {n}" * 30,
            "seconds": 1.0,
        }
        for n, outcome in enumerate(["passed"] * 40 + ["failed"] * 20 + ["skipped"] * 20)
    ]
    metrics = {"frechet": 20.0, "frechet_reference": 8.0, "reconstruction_mse": 0.01, "label_kept": 0.9}
    quality = {
        "kind": "quality",
        "size": 32,
        "preset": "shapes",
        "images": 64_000,
        "of": 128_000,
        "update": "penalised",
    }
    quality |= {"precision": "bf16", "seconds": 40.0, "pictures": ["32px-shapes-samples.png"]}
    loop = {
        "kind": "loop",
        "preset": "shapes",
        "asked": "device",
        "residency": "device",
        "batch": 64,
        "update": "scaled",
    }
    loop |= {"precision": "bf16", "images_per_second": 9_000.0, "data_wait": 0.01}
    top = [{"name": f"void kernel_{n}<{'float, ' * 40}>", "seconds": 1e-3 / (n + 1), "count": 3.0} for n in range(15)]
    profile = {"kind": "profile", "preset": "cifar10", "batch": 100, "precision": "bf16", "step": "scaled", "top": top}
    profile |= {"peak_bytes": 10**9, "seconds": 0.02, "busy": 0.01, "gaps": 0.01, "events": 900.0}
    missed = [{"kind": "not begun", "what": f"cell {n}", "needs": 60, "left": 3} for n in range(20)]
    figures: dict[str, list[dict[str, Any]]] = {
        "tests": [{"kind": "machine", **machine}, {"kind": "collected", "tests": 80}, *tests],
        "step": [*cells, *missed],
        "loop": [loop] * 6,
        "quality": [quality, {"kind": "metrics", "size": 32, "metrics": metrics}, {**quality, "size": 64}],
        "profile": [profile] * 2,
        "roof": [
            {"kind": "matmul", "side": 8192, "flops": 8e14},
            {"kind": "copy", "bytes_per_second": 3e12},
            {"kind": "gather", "bytes_per_second": 3e11},
        ],
    }
    return {
        "device": "cuda",
        "date": "2026-11-26T12:00:00+00:00",
        "command": "python -m tests.gpu.check",
        "budget": 500.0,
        "seconds": 480.0,
        "parts": {
            name: {"status": "failed", "reason": "x" * 300, "limit": 100.0, "seconds": 90.0, "figures": found}
            for name, found in figures.items()
        },
    }


def test_the_fullest_table_has_a_hundred_lines_that_fit_and_says_what_matters() -> None:
    shown = table(full_results())
    lines = shown.splitlines()
    assert len(lines) <= MOST_LINES == 100
    assert max(map(len, lines)) <= 118
    for text in ("A GPU", "40 passed", "20 failed", "800.0 TFLOP/s", "3.0 TB/s", "10.0% of the copy", "4.6%", "cell 0"):
        assert text in shown, text


def test_a_table_of_nothing_is_a_table() -> None:
    parts = {"tests": {"status": "not begun", "reason": "only 2 s were left for it", "limit": 2.0, "seconds": 0.0}}
    results = {**full_results(), "parts": {"tests": {**parts["tests"], "figures": []}}}
    assert "only 2 s were left for it" in table(results)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Results of a GPU, and a copy of the document."""
    results, target = tmp_path / "results.json", tmp_path / "performance.md"
    results.write_text(json.dumps(full_results()), encoding="utf-8")
    target.write_text((command.ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), encoding="utf-8")
    return results, target


def test_the_document_takes_the_figures_between_its_markers_and_twice_is_once(files: tuple[Path, Path]) -> None:
    results, target = files
    before = target.read_text(encoding="utf-8")
    assert document.main(list(map(str, files))) == 0
    once = target.read_text(encoding="utf-8")
    assert document.main(list(map(str, files))) == 0
    assert target.read_text(encoding="utf-8") == once
    assert once.partition(document.BEGIN)[0] == before.partition(document.BEGIN)[0]
    assert once.partition(document.END)[2] == before.partition(document.END)[2]
    for text in ("A GPU", "2026-11-26", "| cifar10, batch 100 | bf16, eager | **scaled** | **12,346** |", "4.6%"):
        assert text in once, text
    for line in (line for line in once.splitlines() if line.startswith("| cifar10")):
        assert line.count("|") == 9


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda text: text.replace(document.END, ""), [document.END, "once each"]),
        (lambda text: text + document.BEGIN + document.END, ["once each"]),
    ],
    ids=["missing", "twice"],
)
def test_a_document_without_its_markers_is_refused(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], change: Callable[[str], str], names: list[str]
) -> None:
    results, target = files
    target.write_text(change(target.read_text(encoding="utf-8")), encoding="utf-8")
    before = target.read_bytes()
    assert document.main([str(results), str(target)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for name in names:
        assert name in said
    assert target.read_bytes() == before


def test_figures_of_a_cpu_do_not_get_into_the_document(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results, target = files
    results.write_text(json.dumps({**full_results(), "device": "cpu"}), encoding="utf-8")
    assert document.main([str(results), str(target)]) == 2
    assert "CPU" in capsys.readouterr().err
    assert document.main([str(results)]) == 2
    assert document.main([str(target), str(target)]) == 2


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
