"""The check for machines with a GPU: its figures are right, and its table and its page of the docs are legible.

Run: `make test ARGS=tests/unit/gpu/test_figures.py`
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.bench import step as bench
from tests.gpu.check import __main__ as command
from tests.gpu.check import document
from tests.gpu.check.parts import step as step_part
from tests.gpu.check.parts.profile import read_events, summarize_trace
from tests.gpu.check.runs import RunSpeed
from tests.gpu.check.table import MOST_LINES, format_table
from tests.helpers.documents import make_markers
from tests.helpers.runs import index_without_shards

BEGIN_MARKER, END_MARKER = make_markers(document.MARKER)

# ---- figures --------------------------------------------------------------------------------------------------------


def test_operations_are_counted_as_torchs_own_counter_counts_them() -> None:
    """That one cannot count steps with penalties; for those, ours counts more than without penalties."""
    cpu = torch.device("cpu")
    operations = step_part.count_operations("cifar10", cpu, step_part.TINY_SETTINGS)
    settings = bench.Settings(preset="cifar10", batch=step_part.COUNTED_IMAGES, precision="fp32")
    for contestant in bench.make_contestants(settings, cpu, **step_part.TINY_SETTINGS):
        with FlopCounterMode(display=False) as counter:
            contestant.update()
        assert operations[contestant.name] * step_part.COUNTED_IMAGES == counter.get_total_flops()
    no_penalty = {**step_part.TINY_SETTINGS, "objective.r1": 0, "objective.r2": 0}
    with_penalty = step_part.count_operations("digits", cpu, step_part.TINY_SETTINGS)["alternating"]
    without_penalty = step_part.count_operations("digits", cpu, no_penalty)["alternating"]
    assert with_penalty > without_penalty > 0


def test_eager_cells_come_before_compiled_ones_and_all_name_steps_that_exist() -> None:
    cells = step_part.plan_cells(tiny=False)
    assert [(cell.preset, cell.batch, cell.precision, cell.compile) for cell in cells[:2]] == [
        ("cifar10", 100, "bf16", False),
        ("cifar10", 100, "fp32", False),
    ]
    assert all(cell.compile <= next_cell.compile for cell, next_cell in pairwise(cells))
    assert len(set(map(str, cells))) == len(cells)
    for cell in cells:
        config = bench.config_for(bench.Settings(preset=cell.preset, batch=cell.batch, precision=cell.precision))
        spec = index_without_shards(bench.SAMPLE_SHAPES[cell.preset]).spec
        assert set(cell.steps or ()) <= set(bench.rules_for(config, spec))


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
    summary = summarize_trace(read_events(trace, ("kernel", "gpu_memcpy", "gpu_memset")), 2, 50e-6)
    assert summary["busy"] == pytest.approx(15e-6)  # of 2 updates: (15 + 5 + 10) / 2
    assert summary["gaps"] == pytest.approx(35e-6)
    assert summary["events"] == 2
    assert summary["top"][0] == {"name": "a", "seconds": pytest.approx(10e-6), "count": 1.0}


def test_the_first_record_of_a_run_does_not_count_for_its_speed() -> None:
    records = [{"images_per_second": speed, "data_wait": 0.1} for speed in (1.0, 100.0, 300.0, 200.0)]
    assert RunSpeed.from_records(records).images_per_second == 200.0
    assert RunSpeed.from_records(records[:1]).images_per_second == 1.0


# ---- texts ----------------------------------------------------------------------------------------------------------


def make_full_results() -> dict[str, Any]:
    """Make more results than a whole check on a GPU can give, in which every part has failed."""
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
            name: {"status": "failed", "reason": "x" * 300, "limit": 100.0, "seconds": 90.0, "figures": of_part}
            for name, of_part in figures.items()
        },
    }


def test_the_longest_table_has_a_hundred_lines_that_fit_and_says_what_matters() -> None:
    text = format_table(make_full_results())
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES == 100
    assert max(map(len, lines)) <= 118
    for part in ("A GPU", "40 passed", "20 failed", "800.0 TFLOP/s", "3.0 TB/s", "10.0% of the copy", "4.6%", "cell 0"):
        assert part in text, part


def test_results_without_figures_have_a_table_too() -> None:
    parts = {"tests": {"status": "not begun", "reason": "only 2 s were left for it", "limit": 2.0, "seconds": 0.0}}
    results = {**make_full_results(), "parts": {"tests": {**parts["tests"], "figures": []}}}
    assert "only 2 s were left for it" in format_table(results)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The results of a GPU, and a copy of the document."""
    results = tmp_path / "results.json"
    target = tmp_path / "performance.md"
    results.write_text(json.dumps(make_full_results()), encoding="utf-8")
    target.write_text((command.ROOT / "docs" / "performance.md").read_text(encoding="utf-8"), encoding="utf-8")
    return results, target


def test_figures_are_put_between_the_markers_of_the_document_and_a_second_time_changes_nothing(
    files: tuple[Path, Path],
) -> None:
    _, target = files
    before = target.read_text(encoding="utf-8")
    assert document.main(list(map(str, files))) == 0
    after = target.read_text(encoding="utf-8")
    assert document.main(list(map(str, files))) == 0
    assert target.read_text(encoding="utf-8") == after
    assert after.partition(BEGIN_MARKER)[0] == before.partition(BEGIN_MARKER)[0]
    assert after.partition(END_MARKER)[2] == before.partition(END_MARKER)[2]
    for part in ("A GPU", "2026-11-26", "| cifar10, batch 100 | bf16, eager | **scaled** | **12,346** |", "4.6%"):
        assert part in after, part
    for line in (line for line in after.splitlines() if ", eager |" in line):
        assert line.count("|") == 9


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda text: text.replace(END_MARKER, ""), [END_MARKER, "once each"]),
        (lambda text: text + BEGIN_MARKER + END_MARKER, ["once each"]),
    ],
    ids=["missing", "twice"],
)
def test_a_document_without_its_markers_is_refused(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str], change: Callable[[str], str], parts: list[str]
) -> None:
    results, target = files
    target.write_text(change(target.read_text(encoding="utf-8")), encoding="utf-8")
    before = target.read_bytes()
    assert document.main([str(results), str(target)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in parts:
        assert part in message
    assert target.read_bytes() == before


def test_figures_of_a_cpu_and_files_that_cannot_be_read_are_refused(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    results, target = files
    results.write_text(json.dumps({**make_full_results(), "device": "cpu"}), encoding="utf-8")
    assert document.main([str(results), str(target)]) == 2
    assert "CPU" in capsys.readouterr().err
    assert document.main([str(results)]) == 2
    assert document.main([str(target), str(target)]) == 2
