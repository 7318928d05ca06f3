"""Parquet files of Hugging Face data sets as they are downloaded: which file is of which split, and its columns.

pyarrow is imported only where a file is read: no other source needs it, and the processes that write shards do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ali_dist.errors import InputError

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
    "eval": "test",
}
_ORDER = ("train", "valid", "test")
_NUMBERED = re.compile(r"(?P<name>.+?)-\d{5}-of-\d{5}(-[0-9a-f]+)?\.parquet", re.IGNORECASE)
_FIRST_WORD = re.compile(r"[A-Za-z]+")
_POINTER_BYTES = 1000  # what git leaves in place of a large file is smaller than this


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """The files of one split, in the order of their names; their rows are numbered through all of them.

    Attributes:
        root: The folder.
        names: Paths of the files below it.
    """

    root: Path
    names: tuple[str, ...]

    def open_all(self) -> Iterator[tuple[str, Any]]:
        """Open one file after another.

        Yields:
            The name of each, and its pyarrow.parquet.ParquetFile.

        Raises:
            InputError: One cannot be read; that holds for what is read from it before the next one is opened, too.
        """
        import pyarrow.parquet as pq

        for name in self.names:
            with self._explain_errors(name), pq.ParquetFile(self.root / name, memory_map=True) as file:
                yield name, file

    def count_rows(self) -> list[int]:
        """The number of rows of each file."""
        return [file.metadata.num_rows for _, file in self.open_all()]

    def schema(self) -> Any:
        """The pyarrow.Schema of the first file."""
        return next(file.schema_arrow for _, file in self.open_all())

    def read_column(self, column: str, field: str = "") -> list[Any]:
        """Read a column whole, or a field of a column of structs, as Python values.

        Raises:
            InputError: A file cannot be read, or has no such column.
        """
        values: list[Any] = []
        for name, file in self.open_all():
            self.require_column(name, file, column)
            read = file.read(columns=[join_path(column, field)]).column(0).to_pylist()
            values += [None if value is None else value[field] for value in read] if field else read
        return values

    def require_column(self, name: str, file: Any, column: str) -> None:
        """Refuse a file that lacks a column which the others have."""
        if column not in file.schema_arrow.names:
            raise InputError(
                f"{self.root / name} has no column {column!r}, which other files there have: give --from the folder of "
                f"one data set only."
            )

    @contextmanager
    def _explain_errors(self, name: str) -> Iterator[None]:
        import pyarrow as pa

        path = self.root / name
        try:
            yield
        except (pa.ArrowException, OSError) as error:
            if (
                path.is_file()
                and path.stat().st_size < _POINTER_BYTES
                and path.read_bytes().startswith(b"version http")
            ):
                raise InputError(
                    f"{path} is only a pointer of git to a large file: run `git lfs pull` there, or download it again."
                ) from error
            reason = " ".join(str(error).split())
            raise InputError(f"{path} cannot be read as Parquet ({reason}): download it again.") from error


def join_path(column: str, field: str) -> str:
    """What Parquet calls a field of a column of structs, or a column."""
    return f"{column}.{field}" if field else column


def find_parquet_files(path: Path) -> dict[str, ParquetFiles]:
    """Find the files of each split: by the files' names (`train-00000-of-00002.parquet`), or else by their folders.

    Args:
        path: A folder with such files at any depth, or one file.

    Returns:
        The files of train, valid, test and others, in that order. Where nothing names a split, all are in `train`.

    Raises:
        InputError: There are none, or they are of several configurations.
    """
    root = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet")) if path.is_dir() else []
    names = [file.relative_to(root).as_posix() for file in files]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise InputError(f"There are no .parquet files in {path}: give the folder of a data set as it is downloaded.")
    _require_one_configuration(root, names)
    splits = {name: _split_of(name) for name in names}
    if not any(splits.values()):
        return {"train": ParquetFiles(root, tuple(names))}
    unnamed = next((name for name, split in splits.items() if not split), None)
    if unnamed is not None:
        raise InputError(
            f"{root / unnamed} does not say of which split it is, but other files there do: rename it, such as to "
            f"train-{Path(unnamed).name}, or move it away."
        )
    found = {str(split) for split in splits.values()}
    ordered = [*(split for split in _ORDER if split in found), *sorted(found - set(_ORDER))]
    return {split: ParquetFiles(root, tuple(name for name in names if splits[name] == split)) for split in ordered}


def _split_of(name: str) -> str | None:
    """The split of a file by its name, or else by the folder it is in; None if neither says one."""
    *folders, file_name = name.split("/")
    numbered = _NUMBERED.fullmatch(file_name)
    if numbered is not None:
        split = numbered["name"].lower()
        return _SPLIT_NAMES.get(split, split)
    word = _FIRST_WORD.match(file_name)
    for text in (word.group() if word else "", *reversed(folders)):
        if text.lower() in _SPLIT_NAMES:
            return _SPLIT_NAMES[text.lower()]
    return None


def _require_one_configuration(root: Path, names: Sequence[str]) -> None:
    """Refuse files of several configurations, which are other forms of the same samples more often than others."""
    folders = {
        "/".join(part for part in name.split("/")[:-1] if part.lower() not in _SPLIT_NAMES) or "." for name in names
    }
    if len(folders) > 1:
        raise InputError(
            f"{root} has .parquet files in several folders ({', '.join(sorted(folders)[:5])}), which are other "
            f"versions of a data set: give --from one of them."
        )
