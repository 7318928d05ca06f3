"""A run says where its weights come from, and nothing that is nobody's business."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from ali_dist.runs.provenance import MOST_STARTS, add_start, command_line, describe_start, read_commit, read_starts


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True
    ).stdout


def test_the_commit_is_that_of_the_checkout_and_changes_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_commit(tmp_path) == ""
    git(tmp_path, "init")
    assert read_commit(tmp_path) == "", "nothing is committed yet"
    (tmp_path / "code.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "One")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert read_commit(tmp_path) == commit
    (tmp_path / "results.txt").write_text("not tracked")
    assert read_commit(tmp_path) == commit
    (tmp_path / "code.py").write_text("2\n")
    assert read_commit(tmp_path) == f"{commit}+"
    (tmp_path / "deeper").mkdir()
    assert read_commit(tmp_path / "deeper") == "", "a folder in another's checkout is none"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_commit(tmp_path) == ""


@pytest.mark.parametrize(
    ("original", "command"),
    [
        ("/usr/bin/python3 -u -m ali_dist.train --run.name 'a b'", "python -m ali_dist.train --run.name 'a b'"),
        ("python /v/bin/ali train --run.seed 1", "ali train --run.seed 1"),
        ("python -m ali_dist.train --data.url s3://me:word@b/x", "python -m ali_dist.train --data.url s3://b/x"),
        ("python /ray/default_worker.py --redis-password=word", ""),
        ("python -m pytest --token=word", ""),
        ("python -m", ""),
        ("", ""),
    ],
)
def test_the_command_is_ours_or_none(original: str, command: str) -> None:
    words = shlex.split(original)
    assert command_line(words, words[1:]) == command


def test_a_start_says_when_where_and_what() -> None:
    start = describe_start(640, torch_version="9.9")
    assert {"started", "images", "host", "ali_dist", "torch", "python"} <= start.keys()
    assert start["started"].endswith("+00:00")
    assert "" not in start.values()


def test_the_first_start_and_the_newest_are_kept() -> None:
    starts: list[dict[str, object]] = []
    for images in range(MOST_STARTS + 20):
        starts = add_start(starts, {"images": images})
    kept = [start["images"] for start in starts]
    assert len(kept) == MOST_STARTS
    assert (kept[0], kept[1], kept[-1]) == (0, 21, MOST_STARTS + 19)
    assert read_starts([{"images": 1}, "odd", None]) == [{"images": 1}]
