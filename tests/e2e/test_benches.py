"""The benches that nothing else runs, at settings that are as small as they take; what they measure so says nothing."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.helpers.hosts import why_not

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COMMANDS = {
    "cpu_paths": "--cases digits --ways plain,bf16 --batch 4 --rounds 1 --updates 1",
    "goodput": "--launchers process --quiet 2 --seconds 9 --every 4",
    "host_memory": "--cases digits --batch 4 --rounds 1 --updates 1",
    "machines": "--events worker --updates 4000",
    "penalised": "--cases digits --batch 4 --rounds 1 --updates 1 --device cpu",
    "quality": "--only mixture --seeds 0 --set run.images=1280 --set report.evaluation_samples=200 --dir DIR",
    "ray_kills": "--kills 1 --updates 120",
    "search": "--seeds 1 --trials 1 --images 1280 --processes 1 --dir DIR",
    "shared_machine": "--turn --batch 4 --seconds 1",
    "sweep": "--preset mixture-ring --trials 3 --images 2560 --seeds 1 --dir DIR",
}
SHOWN = {
    "cpu_paths": "bf16",
    "goodput": "| process |",
    "host_memory": "| digits | 4 |",
    "machines": "| worker |",
    "penalised": "four passes",
    "quality": "high_quality",
    "ray_kills": "the bits and the records of an unbroken run",
    "search": "Optuna ahead",
    "shared_machine": ".",
    "sweep": "| trial | state |",
}
MARKS = {
    "goodput": [pytest.mark.s3],
    "machines": [pytest.mark.skipif(bool(why_not()), reason=why_not() or "")],
}


@pytest.mark.parametrize("bench", [pytest.param(each, marks=MARKS.get(each, [])) for each in COMMANDS])
def test_a_bench_runs_to_its_table(bench: str, tmp_path: Path) -> None:
    assert SHOWN[bench] in run_bench(bench, COMMANDS[bench], tmp_path)


def test_recorded_runs_are_compared_and_continued(tmp_path: Path) -> None:
    for name in ("before", "after"):
        run_bench("identical", f"record DIR/{name} --runs mixture --ranks 1,2", tmp_path)
    assert ", 0 differ." in run_bench("identical", "compare DIR/before DIR/after", tmp_path)
    assert "mixture: continued" in run_bench("identical", "resume DIR/after --runs mixture", tmp_path)
    assert ", 0 differ." not in run_bench("identical", "compare DIR/before DIR/after", tmp_path, expected_code=1)


def run_bench(bench: str, words: str, folder: Path, *, expected_code: int = 0) -> str:
    """Run a bench in `folder`, which stands for DIR in its words; gives what it prints."""
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{bench}", *shlex.split(words.replace("DIR", str(folder)))],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == expected_code, ended.stderr[-3000:]
    return ended.stdout
