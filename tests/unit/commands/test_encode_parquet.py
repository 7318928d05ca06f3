"""encode --out FILE.parquet: the same features as in FILE.npz, with names, in row groups of a bounded size.

Run: `make test ARGS=tests/unit/commands/test_encode_parquet.py`
"""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from ali_dist import encode
from ali_dist.data.shards.index import load_index
from ali_dist.inference import feature_parquet
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import write_arrays
from tests.helpers.trained import ATTRIBUTES, CLASSES, COUNTS, SIDE
from tests.unit.commands.conftest import read_arrays, refusal, succeed


def as_array(table, column):
    """A column of lists as [N, F]."""
    return np.stack(table.column(column).to_numpy(zero_copy_only=False))


@pytest.mark.parametrize("features", ["mu", "joint"])
def test_a_round_trip_gives_what_the_npz_has(plain, tmp_path, features):
    what = (plain, "--features", features)
    succeed(encode, *what, "--out", tmp_path / "f.npz")
    succeed(encode, *what, "--out", tmp_path / "f.parquet", "--workers", 3)
    arrays, table = read_arrays(tmp_path / "f.npz"), pq.read_table(tmp_path / "f.parquet")
    assert np.array_equal(as_array(table, "features"), arrays["features"])
    assert as_array(table, "features").dtype == np.float32
    assert table.column("ids").to_pylist() == arrays["ids"].tolist()
    assert table.column("labels").to_pylist() == arrays["labels"].tolist()
    assert table.column("label_names").to_pylist() == [CLASSES[label] for label in arrays["labels"]]
    assert table.column("origins").null_count == COUNTS["train"]
    metadata = {key.decode(): json.loads(value) for key, value in table.schema.metadata.items() if b"ali" in key}
    assert metadata["ali_dist.features"]["features"] == features
    assert metadata["ali_dist.label_names"] == list(CLASSES)


def test_attributes_are_lists_with_their_names_in_the_metadata(by_attributes, tmp_path):
    succeed(encode, by_attributes, "--out", tmp_path / "f.npz")
    succeed(encode, by_attributes, "--out", tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert np.array_equal(as_array(table, "labels"), read_arrays(tmp_path / "f.npz")["labels"])
    assert json.loads(table.schema.metadata[b"ali_dist.label_names"]) == list(ATTRIBUTES)
    assert "label_names" not in table.column_names


def test_names_of_samples_go_along_also_where_they_are_no_text(plain, tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (10, 1, SIDE, SIDE), dtype=np.uint8)
    names = [f"a/{number}.png" for number in range(8)] + ["größe.jpg", "old\udcff.jpg"]
    write_arrays(tmp_path / "named" / "train", x, None, per_shard=4, origins=names)
    succeed(encode, plain, "--data", tmp_path / "named", "--out", tmp_path / "f.parquet")
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column("origins").to_pylist() == [*names[:-1], "old\\udcff.jpg"]
    assert "labels" not in table.column_names


def test_rows_are_on_the_disk_before_the_next_shard_comes(plain, data, tmp_path, monkeypatch):
    """So that memory does not grow with the data: a row group is of one shard, and of a bounded size."""
    monkeypatch.setattr(feature_parquet, "ROWS_OF_GROUP", 15)
    succeed(encode, plain, "--out", tmp_path / "f.parquet")
    file = pq.ParquetFile(tmp_path / "f.parquet")
    groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    shards = [shard.samples for shard in load_index(LocalStore(data / "train")).shards]
    assert len(shards) > 1
    assert groups == [min(15, count - start) for count in shards for start in range(0, count, 15)]


def test_what_fails_leaves_no_file(plain, tmp_path, capsys, monkeypatch):
    refusal(capsys, encode, plain, "--split", "nowhere", "--out", tmp_path / "f.parquet")
    assert "give FILE.npz, FILE.parquet" in refusal(capsys, encode, plain, "--out", f"{tmp_path}/.parquet")
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert "give a folder" in refusal(capsys, encode, plain, "--out", tmp_path / "f.parquet")
    assert list(tmp_path.iterdir()) == []
