"""What of a sample in somebody else's tar is its label: a class as a number or a name, or attributes.

Labels are read as they stand, one by one, and become class numbers when those of all splits are known
(`name_classes`), so that a class has the same number in all of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ali_dist.errors import InputError

RawLabel = int | str | tuple[float, ...]
"""A class number or a class name as it stands in the sample, or attributes."""

_NUMBER = re.compile(r"[+-]?[0-9]+")
_CLASS_FIELDS = ("label", "class")  # of json: what others call the class there
_MAX_NAME = 200  # characters of a class name
_MAX_DIGITS = 4300  # of a whole number that Python reads by default
_TOO_LARGE = 10**_MAX_DIGITS
_MAX_LISTED = 12
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


def find_labels(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> FoundLabels:
    """Choose the labels by some samples, each a key and its fields `cls` and `json` as far as it has them.

    A class in `cls` comes first, then a whole number `label` or `class` of json, then json's numbers as attributes if
    all of them are 0 or 1 (`true` and `false` count as such). Other json is left alone. The order of the samples does
    not matter, and what is missing in a few (null, NaN, json that cannot be read) makes those bad samples.
    """
    objects: list[tuple[str, dict[str, Any]]] = []
    broken = ""
    for key, fields in samples:
        if "cls" in fields:
            return FoundLabels(LabelChoice("text", ("cls",)), "")
        if "json" in fields:
            try:
                objects.append((key, parse_object(fields["json"])))
            except ValueError as error:
                broken = broken or f"sample {key!r} cannot be used: {error}"
    if not objects:
        return FoundLabels(NO_LABELS, broken and f"No labels are taken: {broken}.")
    contents = [content for _, content in objects]
    for name in _CLASS_FIELDS:
        if _is_class_field([content.get(name) for content in contents]):
            note = f"json's {name!r} is taken as the class; --labels none leaves it alone."
            return FoundLabels(LabelChoice("class", (name,)), note)
    numbers = _find_attributes(contents)
    is_binary = all(_is_binary(value) for content in contents for value in content.values() if _has_value(value))
    if numbers and is_binary and all(map(str.isprintable, numbers)):
        left_alone = _explain_partial(objects, numbers)
        note = f"json's numbers, all 0 or 1, are taken as attributes ({_list_some(numbers)}{left_alone})."
        return FoundLabels(LabelChoice("binary", numbers), note)
    names = _list_some(tuple(dict.fromkeys(name for content in contents for name in content)))
    reasons = [
        *(_describe_empty(name, contents) for name in _CLASS_FIELDS if any(name in content for content in contents)),
        offer_fields(names),
        broken,
    ]
    return FoundLabels(NO_LABELS, f"No labels are taken: {'; '.join(filter(None, reasons))}.")


def _is_class_field(values: Sequence[object]) -> bool:
    """Whether the values of a field of json are classes: whole numbers, though some may be missing."""
    return any(map(_is_whole, values)) and all(_is_missing(value) or _is_whole_number(value) for value in values)


def _find_attributes(contents: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The fields that the json of all samples has, and that are numbers in half of them at least."""
    names = []
    for name in contents[0]:
        if name in _CLASS_FIELDS or not all(name in content for content in contents):
            continue
        values = [content[name] for content in contents if content[name] is not None]
        if values and 2 * sum(map(_is_number, values)) >= len(values):
            names.append(name)
    return tuple(names)


def _explain_partial(objects: Sequence[tuple[str, Mapping[str, Any]]], taken: Sequence[str]) -> str:
    """What is said of numbers that are no attributes because some samples have none."""
    partial: dict[str, str] = {}  # by name: a sample without it
    for _, content in objects:
        for name, value in content.items():
            if _is_number(value) and name not in (*taken, *_CLASS_FIELDS, *partial):
                lacking = next((key for key, other in objects if name not in other), None)
                if lacking is not None:
                    partial[name] = lacking
    if not partial:
        return ""
    first = next(iter(partial))
    verb = "is" if len(partial) == 1 else "are"
    return f"; {_list_some(tuple(partial))} {verb} left alone, as sample {partial[first]!r} has no {first!r}"


def _describe_empty(name: str, contents: Sequence[Mapping[str, Any]]) -> str:
    values = [content.get(name) for content in contents]
    return f"json's {name!r} is null in all samples that were looked at" if all(map(_is_missing, values)) else ""


def offer_fields(names: str) -> str:
    """How to ask for the fields of json that are listed in `names`."""
    return f"json has {names}, of which --labels json:FIELD takes one as the class and json:FIELD,FIELD attributes"


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


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a json object.

    Raises:
        ValueError: It is not a json object.
    """
    try:
        content = json.loads(data, parse_int=_parse_whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its json cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError("its json is not an object")
    return content


def _parse_whole(text: str) -> int:
    """A whole number of json; Python refuses to read very long ones, for which a long one stands."""
    if len(text) <= _MAX_DIGITS:
        return int(text)
    return (-1 if text.startswith("-") else 1) * _TOO_LARGE


def _read_text(data: bytes, field: str) -> RawLabel | None:
    try:
        text = " ".join(data.decode("utf-8").split())
    except UnicodeDecodeError as error:
        raise ValueError(f"its {field} is {data[:20]!r}, but must be a class number or a name in UTF-8") from error
    return _check_class(
        int(text) if _NUMBER.fullmatch(text[: _MAX_NAME + 1]) and len(text) <= _MAX_NAME else text, field
    )


def _read_class(value: Any, name: str) -> RawLabel | None:
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        value = " ".join(value.split())
    elif not isinstance(value, int):
        raise ValueError(
            f"its json has {_show(value)} as {name!r}, but a class is a whole number or a name (several fields, as in "
            f"--labels json:{name},OTHER, are taken as attributes)"
        )
    return _check_class(int(value) if isinstance(value, bool) else value, f"json's {name!r}")


def _check_class(value: int | str, field: str) -> RawLabel | None:
    if isinstance(value, int) and value < 0:
        raise ValueError(f"its class ({field}) is {_show(value)}, but classes are numbered from 0 up")
    if isinstance(value, int) and value >= 10**_MAX_NAME:
        raise ValueError(f"its class ({field}) is a number of more than {_MAX_NAME} digits")
    if isinstance(value, str) and (len(value) > _MAX_NAME or not value.isprintable()):
        raise ValueError(
            f"its class ({field}) is {value[:20]!r}..., but a name has at most {_MAX_NAME} printable characters"
        )
    return None if value == "" else value


def _read_attributes(content: Mapping[str, Any], names: Sequence[str]) -> RawLabel | None:
    if all(content.get(name) is None for name in names):
        return None
    for name in names:
        if name not in content:
            raise ValueError(f"its json has no {name!r}, which is an attribute of others")
        value = content[name]
        if not _is_number(value):
            raise ValueError(f"its json has {_show(value)} as {name!r}, but attributes are numbers")
        if not _is_finite_number(value):
            raise ValueError(f"its json has {_show(value)} as {name!r}, but attributes are finite numbers")
    return tuple(float(content[name]) for name in names)


def _check_binary(content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if _has_value(value) and not _is_binary(value):
            raise NotBinaryError(f"{name!r} is {_show(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _is_finite_number(value: object) -> bool:
    """Whether a value is a number that float32 can hold; a whole number of json may have thousands of digits."""
    return isinstance(value, int | float) and abs(value) <= float(np.finfo(np.float32).max)


def _has_value(value: object) -> bool:
    """Whether a value is a number other than NaN and infinity, which say nothing of what the field is."""
    return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))


def _is_binary(value: object) -> bool:
    return value in (0, 1)


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _is_whole(value: object) -> bool:
    """Whether a value can be the number of a class."""
    return _is_whole_number(value) and value >= 0  # type: ignore[operator]


def _is_missing(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _show(value: object) -> str:
    """A value as a message shows it: it may be long, and a whole number too long to be written."""
    if isinstance(value, int) and abs(value) >= _TOO_LARGE:
        return f"a number of more than {_MAX_DIGITS:,} digits"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**20:
        return f"a number of some {int(math.log10(abs(value))) + 1} digits"
    text = json.dumps(value, default=str)
    return text if len(text) <= 30 else f"{text[:30]}..."


def _list_some(names: Sequence[str]) -> str:
    shown = [name if name.isprintable() and len(name) <= _MAX_NAME else ascii(name[:_MAX_NAME]) for name in names]
    return ", ".join(shown[:_MAX_LISTED]) + ", ..." * (len(names) > _MAX_LISTED)
