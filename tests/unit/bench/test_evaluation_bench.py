"""The bench of evaluations at full size, at a small one: it goes the same way, within a few megabytes of samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ali_dist import evaluate
from ali_dist.evaluation import split_loading
from tests.bench.evaluation import make_run, write_split

COUNTS = {"extra": 600, "train": 200, "valid": 100, "test": 400}


@pytest.mark.parametrize("what", [["metrics", "--samples", "50"], ["svm", "--labels", "20", "--draws", "1"]])
def test_a_run_on_extra_is_measured_within_its_memory(
    what: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 MB hold 244 images of 3x32x32: no more of a split is ever brought to float32 at once."""
    monkeypatch.setattr("ali_dist.evaluation.classifiers.STEPS", 2)
    largest: list[int] = []
    original = split_loading.load_rows

    def watch(*words, **names):
        arrays = original(*words, **names)
        largest.append(arrays.x.nbytes)
        return arrays

    monkeypatch.setattr(split_loading, "load_rows", watch)
    for seed, (split, count) in enumerate(COUNTS.items()):
        write_split(tmp_path / "data" / split, count, seed, per_shard=150)
    run = make_run(tmp_path, 0.1)
    out = tmp_path / "e.json"
    words = [str(run), "--device", "cpu", "--memory-mb", "3", "--json", str(out), "--what", *what]
    assert evaluate.main(words) == 0
    result = json.loads(out.read_text())
    if what[0] == "metrics":
        assert [result["samples"][name]["samples"] for name in ("train", "holdout")] == [244, 244]
        assert len(largest) == 2
        assert max(largest) <= 3_000_000
        assert {"frechet", "label_kept", "probe_accuracy", "reconstruction_mse"} <= result["metrics"].keys()
    else:
        assert not largest
        assert "Labels are from train; C was chosen on valid; errors are of test." in result["notes"]
