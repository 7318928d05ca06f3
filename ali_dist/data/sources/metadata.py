"""Labels of images in a table beside them: metadata.csv or metadata.jsonl, as Hugging Face's "imagefolder" has them."""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ali_dist.data.sources.image_files import ImageListing, name_some, read_file
from ali_dist.errors import InputError

_NAMES = ("metadata.csv", "metadata.jsonl")
_FILE_COLUMN = "file_name"
_ODD_BYTE = re.compile("[\ud800-\udfff]")  # what Python keeps of a byte that is not UTF-8
_MAX_UNIQUE = 20  # images of which each may have a class of its own
_BITS = {0: 0.0, 1: 1.0, "0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}


class TableLabels(NamedTuple):
    """The labels of some images.

    Attributes:
        classes: Names of the classes in their order; empty for attributes.
        class_of: Name of the class of each image, by path; empty for attributes.
        attributes_of: The 0 or 1 of each attribute, by path; empty for classes.
    """

    classes: tuple[str, ...]
    class_of: dict[str, str]
    attributes_of: dict[str, tuple[float, ...]]


class _Row(NamedTuple):
    table: str  # path of its table below the root, for messages
    values: dict[str, Any]


def find_tables(listing: ImageListing, folders: Sequence[str]) -> tuple[str, ...]:
    """Find the tables among the files that are left out.

    Args:
        listing: The images.
        folders: Where tables are looked for below `listing.top`, beside itself and the folders around it.
    """
    parts = listing.top.split("/")
    around = ["".join(f"{part}/" for part in parts[:depth]) for depth in range(len(parts))]
    wanted = {f"{folder}{name}" for folder in [*around, *(listing.top + f for f in folders)] for name in _NAMES}
    return tuple(file.path for file in listing.left_out if file.path in wanted)


def read_labels(listing: ImageListing, tables: Sequence[str], columns: Sequence[str]) -> TableLabels:
    """Read the labels of all images: one column is the class, several are attributes of 0 or 1.

    Args:
        listing: The images.
        tables: Paths of the tables below the root.
        columns: Names of the columns.

    Raises:
        InputError: There is no table, it is malformed, has no such column, or does not name exactly the images.
    """
    if not tables:
        raise InputError(
            f"--labels names a column of metadata.csv or metadata.jsonl, but {listing.root} has neither: put one "
            f"beside the images or into the folder of each split, or leave --labels out."
        )
    rows = _match_rows(listing, tables)
    for column in columns:
        for path, row in rows.items():
            if column not in row.values:
                raise InputError(
                    f"{row.table} in {listing.root} has no column {column!r} for {name_some([path])}: its columns are "
                    f"{name_some([name for name in row.values if name != _FILE_COLUMN], 12)}."
                )
    if len(columns) > 1:
        return TableLabels((), {}, {path: _read_attributes(path, row, columns) for path, row in rows.items()})
    class_of = _name_classes(rows, columns[0])
    classes = sorted(set(class_of.values()))
    if all(_is_whole(name) for name in classes):
        classes.sort(key=int)
    if len(classes) == len(rows) > _MAX_UNIQUE:
        raise InputError(
            f"The column {columns[0]!r} has another value for each of {len(rows)} images (such as {classes[0]!r}), so "
            f"that it is no class: name another column with --labels, or none."
        )
    return TableLabels(tuple(classes), class_of, {})


def describe_unused(listing: ImageListing, tables: Sequence[str]) -> str:
    """A sentence on tables that nobody asked for."""
    try:
        columns = [str(name) for name in next(_read_rows(listing, tables[0]), {}) if name != _FILE_COLUMN]
    except InputError:
        columns = []
    offer = f"; --labels takes one of its columns ({name_some(columns, 12)}) as the class" if columns else ""
    return f"{name_some(tables)} was not used{offer}."


def _match_rows(listing: ImageListing, tables: Sequence[str]) -> dict[str, _Row]:
    """Find the row of every image."""
    rows: dict[str, _Row] = {}
    absent = []
    images = dict(zip(listing.in_root(listing.images), listing.images, strict=True))
    left_out = {file.path for file in listing.left_out}
    for table in tables:
        folder = table[: table.rfind("/") + 1]
        for values in _read_rows(listing, table):
            name = folder + str(values[_FILE_COLUMN]).replace("\\", "/").removeprefix("./")
            if name in left_out:
                continue  # it is counted already
            if name not in images:
                absent.append(name)
            elif images[name] in rows:
                raise InputError(f"{table} in {listing.root} names {name_some([name])} twice: leave one line.")
            else:
                rows[images[name]] = _Row(table, values)
    where = f"{' and '.join(tables)} in {listing.root}"
    if absent:
        raise InputError(
            f"{where} {'names' if len(tables) == 1 else 'name'} {_count_images(absent)} not there "
            f"({name_some(absent)}): remove their lines, or add the images."
        )
    if missing := [path for path in listing.images if path not in rows]:
        raise InputError(
            f"{_count_images(missing)} not named in {where} ({name_some(missing)}): add lines for them, or remove them."
        )
    return rows


def _count_images(paths: Sequence[str]) -> str:
    return "1 image that is" if len(paths) == 1 else f"{len(paths)} images that are"


def _read_rows(listing: ImageListing, table: str) -> Iterator[dict[str, Any]]:
    where = f"{table} in {listing.root}"
    try:
        text = _decode_table(read_file(listing.root, table), where)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{where} cannot be used: {error}.") from error
    rows = _parse_csv(text, where) if table.endswith(".csv") else _parse_json_lines(text, where)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.get(_FILE_COLUMN):
            columns = f" (columns: {name_some(list(map(str, row)), 12)})" if isinstance(row, dict) else ""
            raise InputError(f"{where} has no {_FILE_COLUMN} in row {number}{columns}: add it, or remove the table.")
        for column, value in row.items():
            if column != _FILE_COLUMN and _ODD_BYTE.search(f"{column}{value}"):
                raise InputError(f"{where} is not UTF-8 in row {number}: save it as UTF-8.")
        yield row


def _decode_table(data: bytes, where: str) -> str:
    """The text of a table: UTF-8, or UTF-16 that says so. Odd bytes stay, because names of files may have them."""
    if not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = data.decode("utf-8-sig", "surrogateescape")
    else:
        try:
            text = data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise InputError(f"{where} begins as UTF-16, but is not: save it as UTF-8.") from error
    if "\0" in text:
        raise InputError(f"{where} is no text in UTF-8 (it has zero bytes): save it as UTF-8.")
    return text


def _parse_csv(text: str, where: str) -> Iterator[dict[str, Any]]:
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = list(reader.fieldnames or ())
        if twice := next((name for name, count in Counter(columns).items() if name and count > 1), None):
            raise InputError(
                f"{where} has the column {twice!r} {columns.count(twice)} times: rename one, or remove it."
            )
        for number, row in enumerate(reader, 1):
            extra = row.pop(None, [])
            absent = sum(value is None for value in row.values())
            if absent or any(extra):
                raise InputError(
                    f"{where} has {len(columns) - absent + len(extra)} fields in row {number}, but {len(columns)} "
                    f"columns: add what is missing, or put fields that hold {delimiter!r} in quotes."
                )
            yield row
    except csv.Error as error:
        raise InputError(f"{where} cannot be read as a table ({error}): repair it.") from error


def _parse_json_lines(text: str, where: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError as error:
            raise InputError(f"{where} has no JSON in line {number} ({error}): repair that line.") from error


def _name_classes(rows: dict[str, _Row], column: str) -> dict[str, str]:
    """The class of each image as text; whole numbers in their shortest form."""
    values = {path: row.values[column] for path, row in rows.items()}
    for path, value in values.items():
        is_number = isinstance(value, float) and not value.is_integer()
        if value is None or value == "" or is_number or isinstance(value, list | dict):
            raise InputError(
                f"{rows[path].table} has {value!r} as {column!r} of {name_some([path])}, but a class is a text or a "
                f"whole number."
            )
    texts = {path: str(int(v) if isinstance(v, float) else v).strip() for path, v in values.items()}
    numbers = [text for text in texts.values() if _is_number(text)]
    if len(numbers) < len(texts):
        return texts
    if fraction := next((text for text in numbers if not _is_whole(text)), None):
        raise InputError(
            f"The column {column!r} has numbers such as {fraction}, but classes are texts or whole numbers: name "
            f"another column with --labels."
        )
    return {path: str(int(text)) for path, text in texts.items()}


def _read_attributes(path: str, row: _Row, columns: Sequence[str]) -> tuple[float, ...]:
    values = []
    for column in columns:
        value = row.values[column]
        key = value.strip().lower() if isinstance(value, str) else value
        if not isinstance(key, str | int | float) or key not in _BITS:
            raise InputError(
                f"{row.table} has {value!r} as {column!r} of {name_some([path])}, but an attribute is 0 or 1: give one "
                f"column for classes, or others for attributes."
            )
        values.append(_BITS[key])
    return tuple(values)


def _is_whole(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
