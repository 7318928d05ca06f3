"""The check for machines with a GPU, in its form for a CPU: all its parts work before a GPU is there.

Run: `make test ARGS=tests/e2e/test_gpu_check.py`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.gpu.check.plan import PARTS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class FinishedCheck:
    """A whole check that has ended.

    Attributes:
        folder: What it was told to write its results to.
        exit_code: Exit code of the command.
        output: What it has printed.
        results: Content of results.json.
    """

    folder: Path
    exit_code: int
    output: str
    results: dict[str, Any]

    def figures(self, part: str) -> list[dict[str, Any]]:
        """The figures of a part, but for the description of the machine, which every part gives."""
        return [figure for figure in self.results["parts"][part]["figures"] if figure["kind"] != "machine"]

    def pictures(self) -> list[str]:
        """The names of all pictures of runs."""
        return [name for figure in self.figures("quality") for name in figure.get("pictures", ())]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> FinishedCheck:
    """A check of all parts, run once for all tests; about 35 s of one core, and more on a busy machine."""
    folder = tmp_path_factory.mktemp("gpu-check")
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.check", "--device", "cpu", "--budget", "240", "--out", str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return FinishedCheck(folder, done.returncode, done.stdout, results)


def test_every_part_succeeds_on_a_cpu(check: FinishedCheck) -> None:
    statuses = {name: part["status"] for name, part in check.results["parts"].items()}
    log = (check.folder / "check.log").read_text(encoding="utf-8")
    assert statuses == {part.name: "ok" for part in PARTS}, check.output + log
    assert check.exit_code == 0
    assert len(check.output.splitlines()) <= 100


def test_the_gpu_tests_are_collected_and_skipped(check: FinishedCheck) -> None:
    collected, *tests = check.figures("tests")
    assert len(tests) == collected["tests"] > 0
    assert all(test["outcome"] == "skipped" and "no CUDA device" in test["reason"] for test in tests)


def test_the_step_bench_has_its_cells_and_counts_their_operations(check: FinishedCheck) -> None:
    cells = check.figures("step")
    assert [cell["settings"]["preset"] for cell in cells] == ["cifar10", "digits"]
    assert all(row["flops_per_image"] > 0 for cell in cells for row in cell["rows"])


def test_whole_runs_are_measured_on_resident_and_on_streamed_data(check: FinishedCheck) -> None:
    assert [(loop["preset"], loop["residency"]) for loop in check.figures("loop")] == [
        ("shapes", "ram"),
        ("shapes", "stream"),
        ("cifar10", "ram"),
        ("cifar10", "stream"),
    ]


def test_a_run_of_each_size_has_its_metrics_and_pictures(check: FinishedCheck) -> None:
    figures = check.figures("quality")
    expected = [("quality", 32), ("metrics", 32), ("quality", 64), ("metrics", 64)]
    assert [(figure["kind"], figure["size"]) for figure in figures] == expected
    assert all(figure["metrics"]["frechet"] > 0 for figure in figures if figure["kind"] == "metrics")
    assert len(check.pictures()) == 6
    for name in check.pictures():
        Image.open(check.folder / name).verify()


def test_an_update_is_profiled(check: FinishedCheck) -> None:
    (profile,) = check.figures("profile")
    assert profile["busy"] > 0
    assert len(profile["top"]) == 15


def test_the_limits_of_the_device_are_measured(check: FinishedCheck) -> None:
    assert [figure["kind"] for figure in check.figures("roof")] == ["matmul", "copy", "gather"]


def test_the_results_are_few_files_in_one_folder(check: FinishedCheck) -> None:
    """A lent machine gives back no more than that."""
    files = sorted(path.name for path in check.folder.iterdir())
    assert files == sorted(["check.log", "results.json", *check.pictures()])
