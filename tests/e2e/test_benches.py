"""The benches that nothing else runs, at settings that are as small as they take; what they measure so says nothing."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COMMANDS = {
    "cpu_paths": "--cases digits --ways plain,bf16 --batch 4 --rounds 1 --updates 1",
    "goodput": "--launchers process --quiet 2 --seconds 9 --every 4",
    "penalised": "--cases digits --batch 4 --rounds 1 --updates 1 --device cpu",
    "quality": "--only mixture --seeds 0 --set run.images=1280 --set report.evaluation_samples=200 --dir DIR",
    "search": "--seeds 1 --trials 1 --images 1280 --processes 1 --dir DIR",
}
SHOWN = {
    "cpu_paths": "bf16",
    "goodput": "| process |",
    "penalised": "four passes",
    "quality": "high_quality",
    "search": "Optuna ahead",
}


@pytest.mark.parametrize(
    "bench", [pytest.param(each, marks=pytest.mark.s3) if each == "goodput" else each for each in COMMANDS]
)
def test_a_bench_runs_to_its_table(bench: str, tmp_path: Path) -> None:
    words = shlex.split(COMMANDS[bench].replace("DIR", str(tmp_path)))
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.bench.{bench}", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert SHOWN[bench] in ended.stdout
