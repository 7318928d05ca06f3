"""Which columns of a Hugging Face data set are its pictures and its labels, and the labels themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.config.loading import did_you_mean
from ali_dist.data.shards.labels import Label
from ali_dist.data.sources.base import fingerprint_content
from ali_dist.data.sources.parquet_files import ParquetFiles
from ali_dist.errors import InputError

_IMAGE_NAMES = ("image", "img")
_LABEL_NAMES = ("label", "labels", "fine_label", "class", "category", "target")
_MAX_WORDS = 1000  # different values of a column that may be more than half of its rows: more are names or captions


@dataclass(frozen=True, slots=True)
class SplitLabels:
    """The labels of one split.

    Attributes:
        classes: Names of the classes, or empty.
        attributes: Names of the attributes, or empty.
        numbers: Class numbers int64 [n], where -1 stands for a missing one; None without classes.
        vectors: Attributes float32 [n, A]; None without attributes.
    """

    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    numbers: NDArray[np.int64] | None = None
    vectors: NDArray[np.float32] | None = None

    def of_rows(self, rows: NDArray[np.int64]) -> list[Label | None]:
        """The label of each of some rows."""
        values = self.numbers if self.vectors is None else self.vectors
        return [None] * len(rows) if values is None else list(values[rows])

    def fingerprint(self) -> str:
        """16 hex digits that change with the labels and their names."""
        values = self.numbers if self.vectors is None else self.vectors
        return fingerprint_content("\n".join(self.classes), *([] if values is None else [values]))


@dataclass(frozen=True, slots=True)
class LabelChoice:
    """The columns that labels are read from, those that could be taken instead, and why one of these was not."""

    columns: tuple[str, ...]
    others: tuple[str, ...]
    reason: str = ""


def choose_image_column(schema: Any, chosen: str | None) -> str:
    """Choose the column of the pictures: of type binary, or a struct with `bytes`.

    Raises:
        InputError: There is none, the chosen one is no such column, or several could be meant.
    """
    columns = [field.name for field in schema if _holds_pictures(field.type)]
    listed = ", ".join(schema.names)
    if chosen is not None:
        if chosen not in schema.names:
            hint = did_you_mean(chosen, schema.names).removesuffix("?")
            raise InputError(f"--image names the column {chosen!r}, which does not exist{hint}; columns: {listed}.")
        if chosen not in columns:
            raise InputError(
                f"--image names the column {chosen!r}, which is of type {schema.field(chosen).type}, but encoded "
                f"pictures (binary, or a struct with bytes) are needed; such columns: {', '.join(columns) or 'none'}."
            )
        return chosen
    named = [name for name in columns if name.lower() in _IMAGE_NAMES]
    for candidates in (columns, named):
        if len(candidates) == 1:
            return candidates[0]
    if columns:
        raise InputError(f"Several columns hold pictures ({', '.join(columns)}): choose one with --image.")
    raise InputError(f"No column holds encoded pictures (binary, or a struct with bytes); columns: {listed}.")


def choose_label_columns(schema: Any, image: str, chosen: str | None) -> LabelChoice:
    """Choose the columns of the labels: those that the user names, or else the one that says it is one.

    Raises:
        InputError: A chosen column does not exist, or cannot be a label.
    """
    possible = [field.name for field in schema if field.name != image and _can_be_label(field.type)]
    if chosen is not None:
        columns = tuple(name.strip() for name in chosen.split(","))
        for name in columns:
            if name not in possible:
                hint = did_you_mean(name, possible).removesuffix("?")
                what = "can be no label" if name in schema.names else "does not exist"
                raise InputError(
                    f"--labels names the column {name!r}, which {what}{hint}; columns of numbers or words: "
                    f"{', '.join(possible) or 'none'}."
                )
        return LabelChoice(columns, ())
    declared = [name for name in _declared_classes(schema) if name in possible]
    usual = [name for name in _LABEL_NAMES if name in (declared or possible)]
    column = declared if len(declared) == 1 else usual[:1]
    return LabelChoice(tuple(column), tuple(name for name in possible if name not in column))


def read_labels(by_split: Mapping[str, ParquetFiles], schema: Any, columns: Sequence[str]) -> dict[str, SplitLabels]:
    """Read the labels of every split: class numbers from one column, attributes that are 0 or 1 from several.

    Raises:
        InputError: Values are none of these.
    """
    if not columns:
        return dict.fromkeys(by_split, SplitLabels())
    if len(columns) > 1:
        return {
            split: SplitLabels(
                attributes=tuple(columns),
                vectors=np.stack([_read_attribute(files, column) for column in columns], axis=1),
            )
            for split, files in by_split.items()
        }
    column = columns[0]
    values = {split: _whole_numbers(files.read_column(column), column) for split, files in by_split.items()}
    names = _declared_classes(schema).get(column, ())
    if not names:
        names, numbers = _number_values(values, column)
    else:
        numbers = {split: _check_numbers(part, names, column) for split, part in values.items()}
    labels = {}
    for split, part in numbers.items():
        is_labelled = bool((part >= 0).any())  # competitions publish test splits without labels, as -1
        labels[split] = SplitLabels(classes=names, numbers=part) if is_labelled else SplitLabels()
    return labels


def without_fractions(choice: LabelChoice, by_split: Mapping[str, ParquetFiles]) -> LabelChoice:
    """Leave out a column that was found by its name and holds fractions: it is no class, and nobody asked for it."""
    for column in choice.columns:
        if any(_fraction_in(files.read_column(column)) is not None for files in by_split.values()):
            kept = tuple(name for name in choice.columns if name != column)
            return LabelChoice(kept, choice.others, f"Column {column!r} holds fractions, which are no class")
    return choice


def _fraction_in(values: Iterable[Any]) -> float | None:
    """The first number that is neither whole nor NaN."""
    return next((value for value in values if isinstance(value, float) and value % 1 and value == value), None)


def _whole_numbers(values: Sequence[Any], column: str) -> Sequence[Any]:
    """Class numbers that other programs stored as 3.0 because some are missing (NaN), as numbers and None.

    Raises:
        InputError: One has a fraction.
    """
    fraction = _fraction_in(values)
    if fraction is not None:
        raise InputError(
            f"Column {column!r} has the number {fraction:g}, which is no class: choose a column of whole numbers or "
            f"words with --labels."
        )
    if not any(isinstance(value, float) for value in values):
        return values
    return [int(value) if isinstance(value, float) and value == value else None for value in values]


def _holds_pictures(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_pictures(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _can_be_label(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    return any(test(kind) for test in tests)


def _declared_classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """The class names of each column that Hugging Face's metadata say is of type ClassLabel."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: tuple(str(text) for text in feature["names"])
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}  # a file that other programs wrote


def _check_numbers(values: Iterable[int | None], names: Sequence[str], column: str) -> NDArray[np.int64]:
    numbers = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    if len(numbers) and not -1 <= int(numbers.min()) <= int(numbers.max()) < len(names):
        raise InputError(
            f"Column {column!r} has class numbers from {numbers.min()} to {numbers.max()}, but {len(names)} class "
            f"names are declared: download the data set again, or choose another column with --labels."
        )
    return numbers


def _number_values(
    values: Mapping[str, Sequence[Any]], column: str
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Number the different values of a column in their order, over all splits; negative numbers and nothing are -1."""
    kept = {value for part in values.values() for value in part if value is not None and not _is_negative(value)}
    total = sum(len(part) for part in values.values())
    if len(kept) > _MAX_WORDS and len(kept) > total / 2:
        raise InputError(
            f"Column {column!r} has {len(kept)} different values in {total} rows, which are no classes: choose another "
            f"column with --labels."
        )
    numbers = {value: number for number, value in enumerate(sorted(kept))}
    return tuple(str(value) for value in numbers), {
        split: np.array([numbers.get(value, -1) for value in part], dtype=np.int64) for split, part in values.items()
    }


def _is_negative(value: object) -> bool:
    return isinstance(value, int) and value < 0


def _read_attribute(files: ParquetFiles, column: str) -> NDArray[np.float32]:
    values = files.read_column(column)
    wrong = next((value for value in values if value not in (0, 1)), 0)
    if wrong not in (0, 1):
        raise InputError(
            f"Column {column!r} has the value {wrong!r}, but several --labels are attributes, each 0 or 1: leave it "
            f"out, or name one column of classes only."
        )
    return np.array(values, dtype=np.float32)
