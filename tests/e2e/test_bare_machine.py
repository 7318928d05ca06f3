"""Local mode on a machine with little more than PyTorch, as lent GPU machines are: no Ray, boto3, rich or webdataset.

Run: `make test ARGS=tests/e2e/test_bare_machine.py`
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import arguments, tiny

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("boto3", "botocore", "ray", "rich", "torchvision", "webdataset")
_BLOCKER = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ImportError(f"{{name}} is not on this machine")

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """Variables under which a Python cannot import what bare machines lack."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_BLOCKER, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TERM": "xterm"}


def run(env: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=250, check=False)


def run_on_terminal(env: dict[str, str], folder: Path, *words: str) -> tuple[int, str]:
    """The same with stderr on a terminal, where rich would draw."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", *words]
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # the other end is closed
        pass
    finally:
        os.close(ours)
    return process.wait(250), said.decode(errors="replace")


def test_the_libraries_are_really_absent(bare: dict[str, str], tmp_path: Path) -> None:
    for name in ABSENT:
        done = subprocess.run([sys.executable, "-c", f"import {name}"], env=bare, cwd=tmp_path, capture_output=True)
        assert b"is not on this machine" in done.stderr, name


def test_data_are_prepared_and_a_run_trains_is_judged_and_is_used(bare: dict[str, str], tmp_path: Path) -> None:
    prepared = run(bare, tmp_path, "ali_dist.prepare", "digits", "data", "--verify")
    assert prepared.returncode == 0, prepared.stderr
    config = tiny(tmp_path, report__evaluation="auto", report__evaluation_samples=100)
    code, said = run_on_terminal(bare, tmp_path, "ali_dist.train", *arguments(config))
    assert code == 0, said
    assert "images=192 of=192" in said  # plain lines, as in a log
    generated = run(bare, tmp_path, "ali_dist.generate", "tiny", "--out", "pictures")
    assert generated.returncode == 0, generated.stderr
    assert list((tmp_path / "pictures").rglob("*.png"))
    encoded = run(bare, tmp_path, "ali_dist.encode", "tiny", "--data", "data", "--out", "features.npz")
    assert encoded.returncode == 0, encoded.stderr
    judged = run(bare, tmp_path, "ali_dist.evaluate", "tiny")
    assert judged.returncode == 0, judged.stderr
    heading, *rows = judged.stdout.splitlines()[2:]  # after what was judged, and an empty line
    assert heading.startswith("Metric ")
    assert all(row[: heading.index("Value")].strip() for row in rows)  # one line a row, aligned under its heading


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["ali_dist.train", "--scale.workers", "2"], ["scale.workers", "'2'", "ray"]),
        (["ali_dist.prepare", "digits", "s3://bucket/digits"], ["boto3", "pip install"]),
    ],
)
def test_what_needs_such_a_library_says_so_in_one_sentence(
    bare: dict[str, str], tmp_path: Path, words: list[str], names: list[str]
) -> None:
    done = run(bare, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    for name in names:
        assert name in done.stderr
