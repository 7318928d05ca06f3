"""CIFAR-100 in either published form: the same shards, fine or coarse classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import content, refused, run
from tests.helpers.originals import pack_archive, write_cifar100
from tests.helpers.prepared import read_prepared


def test_every_published_form_gives_the_files_pictures_with_either_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_cifar100(tmp_path / "a" / "cifar-100-binary", binary=True)
    write_cifar100(tmp_path / "b" / "cifar-100-python", binary=False)
    archive = pack_archive(tmp_path / "any.tar.gz", tmp_path / "b" / "cifar-100-python")
    for labels in ("fine", "coarse"):
        outs = [tmp_path / f"{labels}{n}" for n in range(3)]
        for out, source in zip(outs, (tmp_path / "a", tmp_path / "b", archive), strict=True):
            arguments = ("--from", source, "--labels", labels, "--jobs", 1)
            assert run(capsys, "cifar100", out, *arguments)[0] == 0
        assert content(outs[0]) == content(outs[1]) == content(outs[2])
        x, fine = written["train"]
        for split, rows in (("train", range(36)), ("valid", range(36, 40))):
            prepared = read_prepared(outs[0] / split)
            assert len(prepared.index.classes) == (100 if labels == "fine" else 20)
            assert prepared.index.classes[7] == ("fine7" if labels == "fine" else "coarse_7")
            assert prepared.y == {f"train:{row}": fine[row] // (1 if labels == "fine" else 5) for row in rows}
            assert all(np.array_equal(prepared.x[f"train:{row}"], x[row]) for row in rows)
        assert len(read_prepared(outs[0] / "test").x) == 10


def test_a_missing_or_wrong_file_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x"
    write_cifar100(folder, binary=True)

    def refusal(*options: object) -> str:
        return refused(capsys, "cifar100", tmp_path / "out", "--from", folder, *options)

    assert "--labels is 'all'" in refusal("--labels", "all")
    whole = (folder / "train.bin").read_bytes()
    for data, words in [(whole[:-1], "not whole records of 3074"), (b"\0\x64" + whole[2:], "not from 0 to 99")]:
        (folder / "train.bin").write_bytes(data)
        assert words in refusal()
    (folder / "train.bin").unlink()
    assert "no train.bin (nor train)" in refusal()
    (folder / "fine_label_names.txt").write_text("apple\n")
    assert "has 1 fine class names, but CIFAR-100 has 100" in refusal("--splits", "test")
    (folder / "fine_label_names.txt").unlink()
    assert "no fine_label_names.txt (nor meta)" in refusal("--splits", "test")
