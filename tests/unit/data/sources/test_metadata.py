"""Labels from metadata.csv and metadata.jsonl: classes in the right order, attributes, and tables that do not fit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.image_files import ImageListing, list_images
from ali_dist.data.sources.metadata import TableLabels, find_tables, read_labels
from ali_dist.data.sources.split_folders import look_through_top
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import refused, run
from tests.helpers.originals import encode_jpeg, make_photo, write_files


def listing_of(folder: Path, table: str, name: str = "metadata.csv", images: str = "ab") -> ImageListing:
    write_files(folder, {**{f"{image}.png": b"" for image in images}, name: table.encode()})
    return list_images(folder)


def labels_of(listing: ImageListing, columns: str) -> TableLabels:
    return read_labels(listing, find_tables(listing, []), columns.split(","))


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["owl", "cat", "owl"], ("cat", "owl")),
        (["03", "3", "1"], ("1", "3")),
        (["10", "9", "b"], ("10", "9", "b")),
    ],
)
def test_a_column_is_the_class_and_numbers_keep_their_order(
    tmp_path: Path, values: list[str], classes: tuple[str, ...]
) -> None:
    rows = "".join(f"{name}.png,{value}\n" for name, value in zip("abc", values, strict=True))
    labels = labels_of(listing_of(tmp_path, f"file_name,kind\n{rows}", images="abc"), "kind")
    assert labels.classes == classes
    texts = values if classes[-1] == "b" else [value.lstrip("0") for value in values]
    assert [labels.class_of[f"{name}.png"] for name in "abc"] == texts


def test_json_lines_and_csv_with_semicolons_say_the_same(tmp_path: Path) -> None:
    lines = '{"file_name": "a.png", "kind": 1, "caption": "x\u2028y"}\n{"file_name": "./b.png", "kind": 0.0}\n'
    from_lines = labels_of(listing_of(tmp_path / "json", lines, "metadata.jsonl"), "kind")
    table = '\ufefffile_name;kind;caption\na.png;1;"two\nlines, one text"\nb.png;0;\n'
    assert labels_of(listing_of(tmp_path / "csv", table), "kind") == from_lines
    assert from_lines.class_of == {"a.png": "1", "b.png": "0"}


def test_columns_of_0_and_1_are_attributes(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, "file_name,young,smiling\na.png,1,False\nb.png,0,true\n")
    assert labels_of(listing, "smiling,young").attributes_of == {"a.png": (0.0, 1.0), "b.png": (1.0, 0.0)}


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("file_name,kind\na.png,x\n", "kind", r"1 image that is not named in metadata.csv in \S+ \(b.png\): add"),
        ("file_name,kind\na.png,x\nb.png,y\nc.png,x\n", "kind", r"names 1 image that is not there \(c.png\)"),
        ("file_name,kind\na.png,x\na.png,y\n", "kind", "names a.png twice"),
        ("file,kind\na.png,x\n", "kind", r"has no file_name in row 1 \(columns: file, kind\)"),
        ("file_name,kind\na.png,x\nb.png,y\n", "label", "has no column 'label' for a.png: its columns are kind"),
        ("file_name,kind\na.png,x\nb.png,\n", "kind", "has '' as 'kind' of b.png, but a class is a text or a whole"),
        (
            "file_name,kind\na.png,0.5\nb.png,2\n",
            "kind",
            "'kind' has numbers such as 0.5, but classes are texts",
        ),
        ("file_name,kind\na.png,x\nb.png\n", "kind", "has 1 fields in row 2, but 2 columns: add what is missing"),
        ("file_name,kind\na.png,x,y\nb.png,y\n", "kind", "has 3 fields in row 1, but 2 columns"),
        ("file_name,kind,kind\na.png,x,x\nb.png,y,y\n", "kind", "has the column 'kind' 2 times"),
        ("file_name,kind\na.png,x\0\nb.png,y\n", "kind", "has zero bytes"),
        ("file_name,u,v\na.png,1,0\nb.png,1,7\n", "u,v", "has '7' as 'v' of b.png, but an attribute is 0 or 1"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, table: str, columns: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        labels_of(listing_of(tmp_path, table), columns)


def test_a_broken_line_and_a_value_for_each_image_and_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no JSON in line 2"):
        labels_of(listing_of(tmp_path / "a", '{"file_name": "a.png", "kind": 1}\n{"file', "metadata.jsonl"), "kind")
    names = [chr(ord("A") + number) for number in range(25)]
    rows = "".join(f"{name}.png,caption {name}\n" for name in names)
    with pytest.raises(InputError, match="'text' has another value for each of 25 images"):
        labels_of(listing_of(tmp_path / "b", f"file_name,text\n{rows}", images="".join(names)), "text")
    listing = listing_of(tmp_path / "c", "")
    with pytest.raises(InputError, match="has neither: put one"):
        labels_of(dataclasses.replace(listing, left_out=()), "kind")


def test_a_table_beside_the_folder_of_images_is_found_and_may_name_files_that_are_left_out(tmp_path: Path) -> None:
    table = "file_name,kind\nimages/a.png,x\nimages/b.png,y\nimages/c.heic,y\n"
    write_files(
        tmp_path, {"images/a.png": b"", "images/b.png": b"", "images/c.heic": b"", "metadata.csv": table.encode()}
    )
    listing = look_through_top(list_images(tmp_path))
    assert labels_of(listing, "kind").class_of == {"a.png": "x", "b.png": "y"}


def test_tables_of_splits_label_what_is_written_and_are_named_if_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, (split, kinds) in enumerate({"train": ["10", "9", "10"], "test": ["9"]}.items()):
        images = {f"{split}/images/{n}.jpg": encode_jpeg(make_photo(8, 8, 10 * seed + n)) for n in range(len(kinds))}
        rows = "".join(f"images/{n}.jpg,{kind},{n % 2},1\n" for n, kind in enumerate(kinds))
        table = f"file_name,kind,odd,one\n{rows}".encode()
        write_files(tmp_path / "own", {**images, f"{split}/metadata.csv": table})
    arguments = ("--from", tmp_path / "own", "--size", 8, "--jobs", 1)
    code, out, _ = run(capsys, "folder", tmp_path / "kinds", *arguments, "--labels", "kind")
    assert code == 0
    assert "metadata" not in out
    store = LocalStore(tmp_path / "kinds" / "train")
    index = load_index(store)
    _, y = load_arrays(store, index)
    assert y is not None
    assert (index.classes, sorted(y.tolist())) == (("9", "10"), [0, 1, 1])
    assert run(capsys, "folder", tmp_path / "bits", *arguments, "--labels", "odd,one")[0] == 0
    store = LocalStore(tmp_path / "bits" / "train")
    _, y = load_arrays(store, load_index(store))
    assert y is not None
    assert load_index(store).attributes == ("odd", "one")
    assert sorted(map(tuple, np.asarray(y).tolist())) == [(0.0, 1.0), (0.0, 1.0), (1.0, 1.0)]
    out = run(capsys, "folder", tmp_path / "none", *arguments)[1]
    assert "was not used; --labels takes one of its columns (kind, odd, one) as the class" in out
    assert "labels none, not kind" in refused(capsys, "folder", tmp_path / "none", *arguments, "--labels", "kind")


def test_tables_with_tabs_and_in_utf_16_are_read(tmp_path: Path) -> None:
    expected = {"a.png": "caf\u00e9", "b.png": "x, y"}
    table = "file_name\tkind\na.png\tcaf\u00e9\nb.png\tx, y\n"
    assert labels_of(listing_of(tmp_path / "tabs", table), "kind").class_of == expected
    listing = listing_of(tmp_path / "wide", "")
    (tmp_path / "wide" / "metadata.csv").write_bytes(table.encode("utf-16"))
    assert labels_of(listing, "kind").class_of == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("file_name,kind\na.png,x\nb.png,caf\u00e9\n".encode("latin-1"), "is not UTF-8 in row 2: save it as UTF-8"),
        (b"\xff\xfea", "begins as UTF-16, but is not"),
    ],
)
def test_tables_of_other_encodings_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    listing = listing_of(tmp_path, "")
    (tmp_path / "metadata.csv").write_bytes(data)
    with pytest.raises(InputError, match=message):
        labels_of(listing, "kind")
