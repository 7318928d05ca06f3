"""Labels of somebody else's tars: what is taken, what is offered, and what is refused with sample and field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.data.shards.index import Index, load_index
from ali_dist.data.shards.reader import load_labels
from ali_dist.data.shards.tar_label_search import find_labels
from ali_dist.data.shards.tar_labels import LabelChoice, name_classes, parse_choice
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import refused, run
from tests.helpers.tars import encode_image, make_members, write_foreign_tar


def index_labels(
    capsys: pytest.CaptureFixture[str], folder: Path, labels: list[Any], *options: object, field: str = "cls"
) -> tuple[Index, Any, str]:
    """Index a tar with these labels; returns the index, its labels as lists, and what the command says."""
    write_foreign_tar(folder / "0.tar", make_members(labels, field))
    code, out, err = run(capsys, "webdataset", folder, *options)
    assert (code, err) == (0, "")
    index = load_index(LocalStore(folder))
    y = load_labels(LocalStore(folder), index)
    return index, None if y is None else y.tolist(), out


def refuse_labels(
    capsys: pytest.CaptureFixture[str], folder: Path, labels: list[Any], *options: object, field: str = "cls"
) -> str:
    write_foreign_tar(folder / "0.tar", make_members(labels, field))
    message = refused(capsys, "webdataset", folder, *options)
    assert not (folder / "index.json").exists()
    return message


# ---- Without --labels ----------------------------------------------------------------------------------------------


def test_numbers_that_are_no_attributes_are_left_alone_and_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, y, out = index_labels(capsys, tmp_path, [{"width": 900, "hue": 0.5}, {"width": 1, "hue": 1}])
    assert (index.classes, index.attributes, y) == ((), (), None)
    assert "No labels are taken: json has width, hue, of which --labels json:FIELD takes one as the class" in out


def test_a_whole_number_label_of_json_is_the_class_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, y, out = index_labels(capsys, tmp_path, [{"label": 2, "width": 900}, {"label": 0, "width": 800}])
    assert (index.classes, index.attributes, y) == (("0", "1", "2"), (), [2, 0])
    assert "json's 'label' is taken as the class; --labels none leaves it alone" in out


def test_a_number_beyond_the_first_tar_that_is_no_attribute_drops_all_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "train" / "0.tar", make_members([{"a": 1}, {"a": 0}]))
    write_foreign_tar(tmp_path / "test" / "0.tar", make_members([{"a": True}]))
    write_foreign_tar(tmp_path / "test" / "1.tar", make_members([{"a": 1}, {"a": 7}]))
    code, out, _ = run(capsys, "webdataset", tmp_path)
    assert code == 0
    assert "not all 0 or 1 ('a' is 7 in sample '1' of 1.tar)" in out
    for split in ("train", "test"):
        index = load_index(LocalStore(tmp_path / split))
        assert (index.attributes, load_labels(LocalStore(tmp_path / split), index)) == ((), None)


def test_img2dataset_json_with_nulls_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"caption": "a cat", "key": "000", "status": "success", "error_message": None, "width": 256, "exif": "{}"}
    index, y, out = index_labels(capsys, tmp_path, [record, {**record, "width": None}])
    assert (index.classes, index.attributes, y) == ((), (), None)
    assert "json has caption, key, status, error_message, width, exif" in out


def test_a_huge_number_is_left_alone_and_refused_as_an_attribute(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"id": 10**400, "b": 1}, {"id": 1, "b": 0}]
    assert index_labels(capsys, tmp_path / "alone", records)[1] is None
    message = refuse_labels(capsys, tmp_path / "asked", records, "--labels", "json:id,b")
    assert "'0' of 0.tar" in message
    assert "a number of some 401 digits as 'id'" in message


def test_attributes_that_are_not_finite_are_refused_with_sample_and_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, value in enumerate((float("nan"), float("inf"), float("-inf"))):
        records = [{"a": 1, "b": 0}, {"a": 0, "b": value}]
        for options in ((), ("--labels", "json:a,b")):
            message = refuse_labels(capsys, tmp_path / f"{number}{len(options)}", records, *options)
            assert "Sample '1' of 0.tar" in message
            assert f"{json.dumps(value)} as 'b'" in message
            assert "--labels" in message
    assert "as 'a'" in refuse_labels(capsys, tmp_path / "wide", [{"a": 1e39, "b": 1}], "--labels", "json:a,b")


# ---- Classes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [99_999_999_999, 10**8, 2**63 - 1, 2**64, 10**20])
def test_ids_become_classes_named_by_number(tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int) -> None:
    index, y, _ = index_labels(capsys, tmp_path, [number, 5, number])
    assert (index.classes, y) == (("5", str(number)), [1, 0, 1])


def test_classes_with_names_are_sorted_and_equal_in_all_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "train" / "0.tar", make_members(["dog", " cat\n", "dog"]))
    write_foreign_tar(tmp_path / "test" / "0.tar", make_members(["emu", "cat"]))
    assert run(capsys, "webdataset", tmp_path)[0] == 0
    labels = {}
    for split in ("train", "test"):
        index = load_index(LocalStore(tmp_path / split))
        assert index.classes == ("cat", "dog", "emu")
        y = load_labels(LocalStore(tmp_path / split), index)
        assert y is not None
        labels[split] = y.tolist()
    assert labels == {"train": [1, 0, 1], "test": [2, 0]}


def test_a_field_of_json_is_the_class_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"kind": "b", "n": 3.0, "t": True}, {"kind": "a", "n": 1, "t": False}]
    for name, classes, expected in [
        ("kind", ("a", "b"), [1, 0]),
        ("n", tuple("0123"), [3, 1]),
        ("t", ("0", "1"), [1, 0]),
    ]:
        index, y, _ = index_labels(capsys, tmp_path / name, records, "--labels", f"json:{name}")
        assert (index.classes, index.attributes, y) == (classes, (), expected)


def test_several_fields_of_json_are_attributes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"a": -1, "b": 0.25, "c": "x"}, {"a": True, "b": 1e6, "c": "y"}]
    index, y, _ = index_labels(capsys, tmp_path, records, "--labels", "json:b,a")
    assert (index.classes, index.attributes, y) == ((), ("b", "a"), [[0.25, -1.0], [1e6, 1.0]])


def test_another_field_is_the_class_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, y, _ = index_labels(capsys, tmp_path, ["réd", "blue"], "--labels", "txt", field="txt")
    assert (index.classes, y) == (("blue", "réd"), [1, 0])


def test_labels_none_leaves_classes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, y, out = index_labels(capsys, tmp_path, ["0", None, "nonsense\0"], "--labels", "none")
    assert (index.classes, y) == ((), None)
    assert out.count("\n") == 1
    assert "written" in run(capsys, "webdataset", tmp_path, "--labels", "none", "--skip-bad")[1]
    assert "already there" in run(capsys, "webdataset", tmp_path, "--labels", "none", "--skip-bad")[1]


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (["3", "-2"], (), "'1' of 0.tar .*class \\(cls\\) is -2"),
        (["3", "9" * 300], (), "'1' of 0.tar .*at most 200"),
        (["3", "x" * 300], (), "'1' of 0.tar .*at most 200"),
        (["1", None], (), "'1' of 0.tar .*no label \\(cls\\), which others have"),
        (["1", " \n"], (), "'1' of 0.tar .*no label \\(cls\\)"),
        (
            [{"label": 1}, {"label": 2}, {"x": 1}],
            ("--labels", "json:label"),
            "'2' of 0.tar .*no label \\(json:label\\)",
        ),
        (
            [{"a": 1, "b": 0}, {"a": 1}],
            ("--labels", "json:a,b"),
            "'1' of 0.tar .*its json has no 'b', which is an attribute of others",
        ),
        ([{"a": 1, "b": 0}, {"a": 1, "b": "x"}], (), "'1' of 0.tar .*\"x\" as 'b', but attributes are numbers"),
        ([{"a": 0.5}], ("--labels", "json:a"), "0.5 as 'a', but a class is a whole number or a name"),
        ([{"a": [1]}], ("--labels", "json:a"), "\\[1\\] as 'a'"),
        ([{"a": -1}], ("--labels", "json:a"), "is -1, but classes are numbered from 0"),
        ([{"a": float("nan")}], ("--labels", "json:a"), "NaN as 'a'"),
        (["1"], ("--labels", "json:a"), "--labels is json:a, but no sample of 0.tar .* has the fields png, cls"),
        ([{"a": 1}], ("--labels", "cls"), "--labels is cls, but no sample"),
    ],
)
def test_labels_that_cannot_be_used_are_refused_with_the_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[Any], options: tuple[str, ...], words: str
) -> None:
    message = refuse_labels(capsys, tmp_path, labels, *options)
    assert re.search(words, message), message


@pytest.mark.parametrize("text", ["json", "json:", "json:a,", "json:a,a", "", "a,b", "xml:a", "a b"])
def test_labels_that_are_no_choice_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "--labels is" in refuse_labels(capsys, tmp_path, ["1"], f"--labels={text}")


@pytest.mark.parametrize("data", [b"[1]", b"{", b"\xff", b"[" * 60_000])
def test_json_that_is_no_object_is_left_alone_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], data: bytes
) -> None:
    members = [*make_members([None]), ("0.json", data)]
    write_foreign_tar(tmp_path / "0.tar", members)
    assert "No labels are taken: the json of sample '0' " in run(capsys, "webdataset", tmp_path)[1]
    assert "'0' of 0.tar" in refused(capsys, "webdataset", tmp_path, "--labels", "json:a")


@pytest.mark.parametrize("bad", [None, float("nan"), "absent", "broken", "[1]", 9 * 10**4000, -1])
@pytest.mark.parametrize("position", [0, 3, 5])
@pytest.mark.parametrize("values", [[0, 1], [0, 1, 2]])
def test_a_sample_without_a_label_of_json_is_bad_wherever_it_stands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: Any, position: int, values: list[int]
) -> None:
    labels: list[Any] = [{"label": values[n % len(values)], "flag": n % 2} for n in range(5)]
    expected = [record["label"] for record in labels]
    members = make_members([*labels[:position], {"label": bad, "flag": 1}, *labels[position:]])
    odd = {"absent": b'{"flag": 1}', "broken": b'{"label": ', "[1]": b"[1]"}
    if bad in odd:
        members = [(name, odd[bad] if name == f"{position}.json" else data) for name, data in members]
    write_foreign_tar(tmp_path / "0.tar", members)
    for command in (("webdataset", tmp_path), ("webdataset-import", tmp_path / "0.tar", tmp_path / "out")):
        assert f"Sample '{position}' of " in refused(capsys, *command)
        code, out, _ = run(capsys, *command, "--skip-bad")
        assert code == 0
        assert re.search(rf"1 (no|unusable) label \({position}\)", out)
        store = LocalStore(Path(command[-1]))
        y = load_labels(store, load_index(store))
        assert y is not None
        assert y.tolist() == expected


def test_a_number_of_thousands_of_digits_is_refused_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [*make_members([{"label": 1, "x": 0}]), ("1.png", encode_image(1))]
    members.append(("1.json", b'{"x": 1, "label": %s}' % (b"9" * 5000)))
    write_foreign_tar(tmp_path / "0.tar", members)
    message = refused(capsys, "webdataset", tmp_path)
    assert "Sample '1' of 0.tar" in message
    assert "its class (json's 'label') is a number of more than 200 digits" in message
    assert "more than 4,300 digits as 'label'" in refused(capsys, "webdataset", tmp_path, "--labels", "json:label,x")


def test_labels_that_are_null_everywhere_are_none_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, y, out = index_labels(capsys, tmp_path, [{"label": None}] * 3)
    assert (index.classes, index.attributes, y) == ((), (), None)
    assert "No labels are taken: json's 'label' is null in all samples that were looked at" in out


def test_a_class_field_is_no_attribute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, y, _ = index_labels(capsys, tmp_path, [{"label": "cat", "a": 1}, {"label": 1, "a": 0}])
    assert (index.attributes, y) == (("a",), [[1.0], [0.0]])


@pytest.mark.parametrize("position", [0, 1, 2])
def test_attributes_are_the_numbers_that_all_samples_have_and_others_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], position: int
) -> None:
    records = [{"A": 1, "B": 0}, {"A": 0, "B": 1}]
    records.insert(position, {"A": 1})
    index, _, out = index_labels(capsys, tmp_path, records)
    assert index.attributes == ("A",)
    assert f"attributes (A; B is left alone, as sample '{position}' has no 'B')" in out
    assert "A is left alone, as sample '0' has no 'A'" in index_labels(capsys, tmp_path / "b", [{}, {"A": 1}])[2]
    records[position]["B"] = None  # type: ignore[assignment]
    assert f"'{position}' of 0.tar" in refuse_labels(capsys, tmp_path / "null", records)
    index, y, _ = index_labels(capsys, tmp_path / "skip", records, "--skip-bad")
    assert (index.attributes, y) == (("A", "B"), [[1.0, 0.0], [0.0, 1.0]])


# ---- The rules by themselves ---------------------------------------------------------------------------------------


def test_class_numbers_are_kept_unless_they_are_sparse() -> None:
    assert name_classes({0, 7}, 2) == (tuple(map(str, range(8))), None)
    assert name_classes(set(range(5000)), 10_000).numbers is None
    assert name_classes({5, 1000}, 2) == (("5", "1000"), {5: 0, 1000: 1})
    assert name_classes({"b", "a"}, 2) == (("a", "b"), {"a": 0, "b": 1})


@pytest.mark.parametrize(("values", "samples"), [(1500, 2000), (100_001, 10**6)])
def test_more_classes_than_can_be_learned_are_taken_for_ids(values: int, samples: int) -> None:
    with pytest.raises(InputError, match=f"{values} different values, so they are ids"):
        name_classes({10**9 + n for n in range(values)}, samples)


def test_cls_comes_before_json_even_if_only_some_samples_have_one() -> None:
    assert find_labels([("a", {"json": b'{"label": 1}'}), ("b", {"cls": b"1"})]).choice == LabelChoice("text", ("cls",))
    assert parse_choice("CLS") == LabelChoice("text", ("cls",))
    assert np.array_equal(name_classes({3, 10**12}, 2).number_labels([10**12, 3]), [1, 0])
