"""Image data sets in the Parquet files that Hugging Face's `datasets` writes, made with pyarrow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(
    path: Path,
    pictures: Sequence[bytes | None],
    *,
    image: str = "image",
    paths: Sequence[str | None] | None = None,
    columns: Mapping[str, Any] | None = None,
    classes: Mapping[str, Sequence[str]] | None = None,
    row_group_size: int = 4,
) -> Path:
    """Write encoded pictures with other columns; `classes` are the names of columns that are of type ClassLabel."""
    names = [None] * len(pictures) if paths is None else paths
    structs = [{"bytes": data, "path": name} for data, name in zip(pictures, names, strict=True)]
    table = pa.table({image: pa.array(structs, ENCODED), **(columns or {})})
    features: dict[str, Any] = {image: {"_type": "Image"}}
    for column, class_names in (classes or {}).items():
        features[column] = {"names": list(class_names), "_type": "ClassLabel"}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)
    return path
