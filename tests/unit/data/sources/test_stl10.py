"""STL-10's binary files, whose pictures are stored column by column and whose labels count from 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ali_dist.data.sources.stl10 import CLASSES
from tests.helpers.commands import refused, run
from tests.helpers.originals import make_noise
from tests.helpers.prepared import read_prepared

COUNTS = {"train": 12, "unlabeled": 5, "test": 10}


def write_stl10(folder: Path) -> dict[str, np.ndarray]:
    """Write the files; gives the upright pictures [N, 3, 96, 96]. Labels go round through the ten."""
    folder.mkdir()
    pictures = {name: make_noise(n, (3, 96, 96), seed) for seed, (name, n) in enumerate(COUNTS.items())}
    for name, x in pictures.items():
        (folder / f"{name}_X.bin").write_bytes(x.transpose(0, 1, 3, 2).tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes((np.arange(len(x)) % 10 + 1).astype(np.uint8).tobytes())
    return pictures


def test_pictures_are_upright_and_labels_count_from_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_stl10(tmp_path / "stl10_binary")
    arguments = ("--from", tmp_path, "--size", 96, "--jobs", 1, "--verify")
    assert run(capsys, "stl10", tmp_path / "out", *arguments)[0] == 0
    for name, x in written.items():
        prepared = read_prepared(tmp_path / "out" / name)
        has_labels = name != "unlabeled"
        assert prepared.index.classes == (CLASSES if has_labels else ())
        assert prepared.y == {f"{name}_X.bin:{row}": row % 10 if has_labels else None for row in range(len(x))}
        assert all(np.array_equal(prepared.x[f"{name}_X.bin:{row}"], x[row]) for row in range(len(x)))
    source = ("--from", tmp_path / "stl10_binary", "--splits", "test")
    assert run(capsys, "stl10", tmp_path / "small", *source, "--jobs", 2, "--shard-mb", 0.05)[0] == 0
    assert read_prepared(tmp_path / "small" / "test").index.shape == (3, 64, 64)


def test_a_missing_or_cut_file_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    write_stl10(folder)

    def refusal() -> str:
        return refused(capsys, "stl10", tmp_path / "out", "--from", folder, "--splits", "test", "--jobs", 1)

    for name, size, words in [
        ("test_X.bin", 100, "has 100 bytes, which are not whole pictures of 27648"),
        ("test_y.bin", 9, "does not have 10 labels from 1 to 10"),
    ]:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:size])
        assert words in refusal()
        (folder / name).write_bytes(whole)
    (folder / "test_y.bin").unlink()
    assert "no test_y.bin in" in refusal()
