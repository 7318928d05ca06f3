"""The registry of data sets: a row is all that the program needs to know of one, and every row is true."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest

from ali_dist.config.learning import DataConfig
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.base import BUILT_IN_SPLITS, SourceSplit, samples_from_arrays
from ali_dist.data.sources.registry import (
    SOURCES,
    DataSource,
    SourceOption,
    built_in_sources,
)
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import refused, run


def test_the_config_allows_exactly_the_built_in_sources() -> None:
    """The type of `data.source` is written out, because the config layer lies below the data."""
    allowed = [value for part in get_args(get_type_hints(DataConfig)["source"]) for value in get_args(part)]
    assert sorted(allowed) == sorted(built_in_sources())


@pytest.mark.parametrize("name", built_in_sources())
def test_a_built_in_source_gives_the_splits_and_the_name_by_which_it_is_recognized(name: str) -> None:
    source, options = built_in_sources()[name]
    splits = list(source.make_splits(**options))
    assert tuple(split.name for split in splits) == BUILT_IN_SPLITS
    assert {split.settings["name"] for split in splits} == {name}


@pytest.mark.parametrize("name", SOURCES)
def test_the_options_of_a_row_are_the_keywords_of_its_function(name: str) -> None:
    source = SOURCES[name]
    assert {option.keyword for option in source.options} == set(inspect.signature(source.make_splits).parameters)
    assert bool(source.original_files) == any(option.keyword == "path" for option in source.options)


def test_sources_that_share_a_flag_agree_on_how_it_is_read() -> None:
    readings: dict[str, set[object]] = {}
    for source in SOURCES.values():
        for option in source.options:
            reading = (option.keyword, option.value_type, option.choices, option.metavar)
            readings.setdefault(option.command_flag, set()).add(reading)
    assert {flag: len(different) for flag, different in readings.items() if len(different) > 1} == {}


def stripes_splits(width: int = 4) -> Iterator[SourceSplit]:
    """Black and white stripes, whose class is their direction."""
    stripes = np.indices((8, 8)) % (2 * width) < width
    x = (255 * stripes[:, None]).astype(np.uint8).repeat(10, axis=0)
    y = np.arange(2).repeat(10)
    for name in BUILT_IN_SPLITS:
        yield SourceSplit(
            name=name,
            num_samples=len(x),
            shape=(1, 8, 8),
            select_samples=samples_from_arrays(x, y, "Stripes"),
            settings={"name": "stripes", "width": width},
            classes=("across", "down"),
        )


def test_a_new_data_set_is_a_function_and_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, its options and its help, and data that training writes by itself, all follow from the row."""
    row = DataSource(
        summary="black and white stripes",
        make_splits=stripes_splits,
        options=(SourceOption(keyword="width", value_type=int, help="pixels of a stripe (default 4)"),),
        built_in={"stripes": {"width": 2}},
    )
    monkeypatch.setitem(SOURCES, "stripes", row)
    assert run(capsys, "stripes", tmp_path / "command", "--width", 1, "--jobs", 1)[0] == 0
    assert "--width does not apply to digits" in refused(capsys, "digits", tmp_path / "x", "--width", 1)
    with pytest.raises(SystemExit):
        run(capsys, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "stripes black and white stripes" in text
    assert "stripes: pixels of a stripe (default 4)" in text
    assert ensure_prepared("stripes", str(tmp_path / "first-use"))
    for folder, width in (("command", 1), ("first-use", 2)):
        store = LocalStore(tmp_path / folder / "train")
        index = load_index(store)
        assert index.extra["source"]["width"] == width
        x, y = load_arrays(store, index)
        assert y is not None
        assert (x[y == 0].float().std(dim=-1) == 0).all(), "rows of one color, so that the stripes run across"
