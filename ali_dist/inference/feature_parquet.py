"""Features of a whole data set as one Parquet file, written shard after shard.

Columns, a row for each sample in the index's order: `ids` (int64), `features` (a list of F float32), `labels` where the
data have them (int64, or a list of A float32), `label_names` (text) where classes have names, and `origins` (text, null
where the data do not note it). The file's metadata have the settings (`ali_dist.features`) and the names of classes or
attributes (`ali_dist.label_names`), as JSON.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from ali_dist.data.shards.index import Index
from ali_dist.inference.features import EncodedShard
from ali_dist.storage.base import Store

ROWS_OF_GROUP = 8192
"""Rows that a row group has at most: so many are in memory at a time, beside the shard that they are of."""


class ParquetWriter:
    """Writes shards, in the order of their numbers, into one file: row groups are on the disk as they come.

    Args:
        store: The folder of the file.
        name: The file's name.
        index: The data's index.
        settings: What decides the features, JSON-able.
    """

    def __init__(self, store: Store, name: str, index: Index, settings: Mapping[str, Any]) -> None:
        self.url = f"{store.url.rstrip('/')}/{name}"
        self._store = store
        self._name = name
        self._index = index
        self._metadata = {
            "ali_dist.features": json.dumps(dict(settings)),
            "ali_dist.label_names": json.dumps(list(index.spec.label_names)),
        }
        self._starts = np.cumsum([0, *(shard.samples for shard in index.shards)])
        self._size = 0
        self._written = 0
        self._file: Any = None
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        scratch = self._exit.enter_context(tempfile.TemporaryDirectory(prefix="ali-dist-features-"))
        self._path = Path(scratch) / "features.parquet"
        return self

    def __exit__(self, *error: object) -> None:
        if self._file is not None:
            self._file.close()
        self._exit.close()

    def missing_shards(self) -> list[int]:
        return [number for number, shard in enumerate(self._index.shards) if shard.samples]

    def write_shard(self, encoded: EncodedShard) -> None:
        import pyarrow.parquet as pq

        table = self._make_table(encoded)
        if self._file is None:
            self._size = encoded.features.shape[1]
            self._file = pq.ParquetWriter(self._path, table.schema)
        assert int(self._starts[encoded.shard]) == self._written, "shards come in the order of their numbers"
        self._file.write_table(table, row_group_size=ROWS_OF_GROUP)
        self._written += table.num_rows

    def finish(self) -> tuple[int, int]:
        assert self._file is not None, "an index has at least one sample"
        self._file.close()
        self._file = None
        self._store.put(self._name, self._path)
        return self._written, self._size

    def _make_table(self, encoded: EncodedShard) -> Any:
        import pyarrow as pa

        def as_lists(rows: Any) -> Any:
            return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])

        count = len(encoded.features)
        start = int(self._starts[encoded.shard])
        columns = {"ids": pa.array(np.arange(start, start + count)), "features": as_lists(encoded.features.numpy())}
        if encoded.labels is not None:
            labels = encoded.labels.numpy()
            columns["labels"] = pa.array(labels) if labels.ndim == 1 else as_lists(labels)
            names = self._index.spec.classes
            if names and labels.ndim == 1:
                columns["label_names"] = pa.array([names[label] for label in labels.tolist()], pa.string())
        origins = encoded.origins or (None,) * count
        columns["origins"] = pa.array([_as_text(origin) for origin in origins], pa.string())
        return pa.table(columns).replace_schema_metadata(self._metadata)


def _as_text(origin: str | None) -> str | None:
    """A name as UTF-8, which Parquet's texts are: bytes of a file's name that are none become backslash escapes."""
    return origin.encode("utf-8", "backslashreplace").decode() if origin else None
