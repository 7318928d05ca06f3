"""The check for machines with a GPU, in its form for a CPU: when a GPU comes, the command works.

Run: `make test ARGS=tests/e2e/test_gpu_check.py`
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.gpu.check.plan import PARTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    # Some 50 s on one idle core. The budget is what a machine may take that is busy with other things, too.
    words = ["--device", "cpu", "--budget", "240", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.check", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {name: part["status"] for name, part in results["parts"].items()} == {part.name: "ok" for part in PARTS}, (
        done.stdout + (tmp_path / "check.log").read_text(encoding="utf-8")
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 100

    found = {name: [f for f in part["figures"] if f["kind"] != "machine"] for name, part in results["parts"].items()}
    collected, *tests = found["tests"]
    assert len(tests) == collected["tests"] > 0
    assert all(test["outcome"] == "skipped" and "no CUDA device" in test["reason"] for test in tests)
    assert [cell["settings"]["preset"] for cell in found["step"]] == ["cifar10", "digits"]
    assert all(row["flops_per_image"] > 0 for cell in found["step"] for row in cell["rows"])
    assert [(loop["preset"], loop["residency"]) for loop in found["loop"]] == [
        ("shapes", "ram"),
        ("shapes", "stream"),
        ("cifar10", "ram"),
        ("cifar10", "stream"),
    ]
    assert [(f["kind"], f["size"]) for f in found["quality"]] == [
        ("quality", 32), ("metrics", 32), ("quality", 64), ("metrics", 64),
    ]  # fmt: skip
    assert all(f["metrics"]["frechet"] > 0 for f in found["quality"] if f["kind"] == "metrics")
    pictures = [name for f in found["quality"] for name in f.get("pictures", ())]
    assert len(pictures) == 6
    for name in pictures:
        Image.open(tmp_path / name).verify()
    (profile,) = found["profile"]
    assert profile["busy"] > 0
    assert len(profile["top"]) == 15
    assert [figure["kind"] for figure in found["roof"]] == ["matmul", "copy", "gather"]

    # Few files in one folder, because no more comes back from a lent machine.
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["check.log", "results.json", *pictures])
