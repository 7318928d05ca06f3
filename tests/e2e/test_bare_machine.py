"""Local mode works on a machine with little more than PyTorch: without Ray, boto3, rich and webdataset.

Run: `make test ARGS=tests/e2e/test_bare_machine.py`
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.runs import command_line_for, tiny_config

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
def bare_env(tmp_path: Path) -> dict[str, str]:
    """Environment variables with which a Python cannot import what a bare machine lacks."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_BLOCKER, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path / "site"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TERM": "xterm"}


def run_module(env: dict[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=250, check=False)


def run_module_on_terminal(env: dict[str, str], folder: Path, *arguments: str) -> tuple[int, str]:
    """Run a module with stderr on a terminal, where rich would draw; returns the exit code and stderr."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", *arguments]
    process = subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    output = b""
    try:
        while chunk := os.read(master, 4096):
            output += chunk
    except OSError:  # the process has closed its end
        pass
    finally:
        os.close(master)
    return process.wait(250), output.decode(errors="replace")


def test_the_libraries_are_really_absent(bare_env: dict[str, str], tmp_path: Path) -> None:
    attempts = "".join(f"try:\n    import {name}\nexcept ImportError as error:\n    print(error)\n" for name in ABSENT)
    done = subprocess.run(
        [sys.executable, "-c", attempts], env=bare_env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{name} is not on this machine" for name in ABSENT]


def test_data_are_prepared_and_a_run_is_trained_evaluated_and_used(bare_env: dict[str, str], tmp_path: Path) -> None:
    prepared = run_module(bare_env, tmp_path, "ali_dist.prepare", "digits", "data", "--verify")
    assert prepared.returncode == 0, prepared.stderr
    config = tiny_config(tmp_path, report__evaluation="auto", report__evaluation_samples=100)
    code, output = run_module_on_terminal(bare_env, tmp_path, "ali_dist.train", *command_line_for(config))
    assert code == 0, output
    assert "192 / 192 images" in output  # plain lines, as in a log
    generated = run_module(bare_env, tmp_path, "ali_dist.generate", "tiny", "--out", "pictures")
    assert generated.returncode == 0, generated.stderr
    assert list((tmp_path / "pictures").rglob("*.png"))
    encoded = run_module(bare_env, tmp_path, "ali_dist.encode", "tiny", "--data", "data", "--out", "features.npz")
    assert encoded.returncode == 0, encoded.stderr
    evaluated = run_module(bare_env, tmp_path, "ali_dist.evaluate", "tiny")
    assert evaluated.returncode == 0, evaluated.stderr
    _, table, notes = evaluated.stdout.split("\n\n")  # a line on what was evaluated comes first
    assert "samples" in notes
    heading, *rows = table.splitlines()
    assert heading.startswith("Metric ")
    assert all(row[: heading.index("Value")].strip() for row in rows)  # each row is one line, aligned under the heading


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["ali_dist.train", "--scale.workers", "2"], ["scale.workers", "'2'", "ray"]),
        (["ali_dist.prepare", "digits", "s3://bucket/digits"], ["boto3", "pip install"]),
    ],
)
def test_a_command_that_needs_such_a_library_is_refused_in_one_sentence(
    bare_env: dict[str, str], tmp_path: Path, arguments: list[str], parts: list[str]
) -> None:
    done = run_module(bare_env, tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr
