"""What of a sample in somebody else's tar is its label: a class as a number or a name, or attributes.

Labels are read as they stand, one by one, and become class numbers when those of all splits are known
(`name_classes`), so that a class has the same number in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ali_dist.data.shards.json_values import has_value, is_binary, is_finite_number, is_number, parse_object, show_value
from ali_dist.errors import InputError

RawLabel = int | str | tuple[float, ...]
"""A class number or a class name as it stands in the sample, or attributes."""

_NUMBER = re.compile(r"[+-]?[0-9]+")
MAX_NAME = 200  # characters of a class name
_DENSE_CLASSES = 1000
_MAX_CLASSES = 100_000
_EXAMPLES = "cls, txt, json:FIELD (a class), json:FIELD,FIELD (attributes), or none"


class NotBinaryError(Exception):
    """Numbers that looked like attributes, 0 or 1 in every sample, are none; the message names one."""


@dataclass(frozen=True, slots=True)
class LabelChoice:
    """Where labels stand.

    Attributes:
        kind: `none`; `text`: a field of the sample is the class; `class`: a field of its json is; `attributes`: several
            fields of its json are attributes; `binary`: the same, if it turns out that all numbers are 0 or 1.
        names: The field of the sample, or the fields of its json.
    """

    kind: Literal["none", "text", "class", "attributes", "binary"]
    names: tuple[str, ...] = ()

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes; empty if labels are classes."""
        return self.names if self.kind in ("attributes", "binary") else ()

    @property
    def needed_fields(self) -> tuple[str, ...]:
        """The fields of a sample that hold its label."""
        return {"none": (), "text": self.names}.get(self.kind, ("json",))

    def __str__(self) -> str:
        """The choice as `--labels` takes it."""
        if self.kind in ("none", "text"):
            return "".join(self.names) or "none"
        return f"json:{','.join(self.names)}"

    def read(self, fields: Mapping[str, bytes]) -> RawLabel | None:
        """Read the label of a sample; None where it has none.

        Args:
            fields: The content of its `needed_fields`, as far as it has them.

        Raises:
            ValueError: What is there cannot be a label; the message says why.
            NotBinaryError: See there.
        """
        if self.kind == "none":
            return None
        if self.kind == "text":
            return _read_text(fields[self.names[0]], self.names[0]) if self.names[0] in fields else None
        if "json" not in fields:
            return None
        content = parse_object(fields["json"])
        if self.kind == "class":
            return _read_class(content.get(self.names[0]), self.names[0])
        if self.kind == "binary":
            _check_binary(content)
        return _read_attributes(content, self.names)


NO_LABELS = LabelChoice("none")


def parse_choice(text: str) -> LabelChoice:
    """Parse a value of `--labels`.

    Raises:
        InputError: It is none.
    """
    kind, colon, rest = text.partition(":")
    names = tuple(name.strip() for name in rest.split(","))
    if text == "none":
        return NO_LABELS
    if kind == "json" and colon and all(names) and len(set(names)) == len(names):
        return LabelChoice("class" if len(names) == 1 else "attributes", names)
    if text != "json" and not colon and re.fullmatch(r"[^\s/,]+", text):
        return LabelChoice("text", (text.lower(),))
    raise InputError(f"--labels is {text!r}, but must be {_EXAMPLES}.")


class FoundLabels(NamedTuple):
    """The labels that are taken where nobody chose any, and a sentence on that."""

    choice: LabelChoice
    note: str


class ClassNames(NamedTuple):
    """Names of the class numbers, and the number of each class; None where a class is its own number."""

    names: tuple[str, ...]
    numbers: Mapping[int | str, int] | None

    def number_labels(self, labels: Sequence[int | str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The class numbers [n] of labels."""
        return np.array([self.numbers[label] for label in labels] if self.numbers else labels, dtype=np.int64)


def name_classes(values: set[int | str], samples: int) -> ClassNames:
    """Name the classes of all splits.

    Class numbers are kept where they are below 1,000 or leave few gaps, and their names are '0', '1', ... up to the
    largest. Other numbers, such as ids, and names are sorted and counted from 0.

    Args:
        values: The labels that there are, all numbers or all names.
        samples: Number of samples that they label.

    Raises:
        InputError: There are too many classes to learn.
    """
    if len(values) > _MAX_CLASSES or len(values) > max(_DENSE_CLASSES, samples // 2):
        raise InputError(
            f"The labels of {samples} samples have {len(values)} different values, so they are ids rather than "
            f"classes: choose others with --labels, or --labels none."
        )
    numbers = {value for value in values if isinstance(value, int)}
    if len(numbers) == len(values) and max(numbers) < max(_DENSE_CLASSES, 2 * len(numbers)):
        return ClassNames(tuple(str(number) for number in range(max(numbers) + 1)), None)
    ordered: list[int | str] = sorted(values, key=lambda value: (value, "") if isinstance(value, int) else (0, value))
    return ClassNames(tuple(map(str, ordered)), {value: number for number, value in enumerate(ordered)})


def _read_text(data: bytes, field: str) -> RawLabel | None:
    try:
        text = " ".join(data.decode("utf-8").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"its {field} is {data[:20]!r}, but must be a class number or a name in UTF-8") from error
    return _check_class(int(text) if _NUMBER.fullmatch(text[: MAX_NAME + 1]) and len(text) <= MAX_NAME else text, field)


def _read_class(value: Any, name: str) -> RawLabel | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        value = " ".join(value.split())
    elif not isinstance(value, int):
        raise ValueError(
            f"its json has {show_value(value)} as {name!r}, but a class is a whole number or a name (several "
            f"fields, as in --labels json:{name},OTHER, are taken as attributes)"
        )
    return _check_class(int(value) if isinstance(value, bool) else value, f"json's {name!r}")


def _check_class(value: int | str, field: str) -> RawLabel | None:
    if isinstance(value, int) and value < 0:
        raise ValueError(f"its class ({field}) is {show_value(value)}, but classes are numbered from 0 up")
    if isinstance(value, int) and value >= 10**MAX_NAME:
        raise ValueError(f"its class ({field}) is a number of more than {MAX_NAME} digits")
    if isinstance(value, str) and (len(value) > MAX_NAME or not value.isprintable()):
        raise ValueError(
            f"its class ({field}) is {value[:20]!r}..., but a name has at most {MAX_NAME} printable characters"
        )
    return None if value == "" else value


def _read_attributes(content: Mapping[str, Any], names: Sequence[str]) -> RawLabel | None:
    if all(content.get(name) is None for name in names):
        return None
    for name in names:
        if name not in content:
            raise ValueError(f"its json has no {name!r}, which is an attribute of others")
        value = content[name]
        if not is_number(value):
            raise ValueError(f"its json has {show_value(value)} as {name!r}, but attributes are numbers")
        if not is_finite_number(value):
            raise ValueError(f"its json has {show_value(value)} as {name!r}, but attributes are finite numbers")
    return tuple(float(content[name]) for name in names)


def _check_binary(content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if has_value(value) and not is_binary(value):
            raise NotBinaryError(f"{name!r} is {show_value(value)}")
