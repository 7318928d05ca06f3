"""YAML that a user writes: what is wrong is said in a line, with the place, and nothing is taken for something else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
import yaml

from ali_dist.config.yaml_files import (
    describe_yaml_error,
    parse_typed_documents,
    parse_typed_yaml,
    parse_yaml_text,
)

PARSERS = (parse_yaml_text, parse_typed_yaml, parse_typed_documents)


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 3\n", "in line 3, column 1 (a: 3): 'a' is given twice"),
        ("a: &a [*a]\n", "its part 'a' holds itself"),
        ("[" * 5000, "it is nested more than 20 levels deep"),
        ("a:\n\tb: 1\n", "it is indented by a tab"),
        ('a: 1\nb: "x\nc: 2\n', 'in line 2, column 4 (b: "x): '),
        ("a: 1\nb: x\x07y\n", "in line 2: it holds a control character"),
    ],
)
def test_a_mistake_is_described_in_a_line_with_its_place(parse: Callable[[str], Any], text: str, reason: str) -> None:
    with pytest.raises(yaml.YAMLError) as caught:
        parse(text)
    described = describe_yaml_error(caught.value, text)
    assert described.startswith(reason) or reason in described
    assert "\n" not in described
    assert "unicode string" not in described


@pytest.mark.parametrize("value", ["2024-13-45", "9" * 5000, "!!bool maybe", "!!timestamp soon", '!!int ""'])
def test_what_only_looks_like_a_date_or_a_number_is_refused_where_it_stands(value: str) -> None:
    text = f"a: 1\nb: {value}\n"
    with pytest.raises(yaml.YAMLError) as caught:
        parse_typed_yaml(text)
    described = describe_yaml_error(caught.value, text)
    assert described.startswith("in line 2, column 4 (b: ")
    assert described.endswith("put it in quotes if it is text")
    assert len(described) < 400


def test_bytes_that_are_no_text_are_to_be_saved_as_utf_8() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"a: caf\xe9\n".decode()
    assert describe_yaml_error(caught.value, "").endswith("0xe9): save it as UTF-8")


def test_values_stay_text_or_get_yaml_s_types() -> None:
    text = "a: 1\nb: [yes, 2024-12-24]\nc:\n"
    assert parse_yaml_text(text) == {"a": "1", "b": ["yes", "2024-12-24"], "c": None}
    assert parse_typed_yaml(text) == {"a": 1, "b": [True, date(2024, 12, 24)], "c": None}
    assert parse_typed_documents("a: 1\n---\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]
