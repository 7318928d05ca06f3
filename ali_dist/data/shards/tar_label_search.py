"""Which labels of somebody else's tar are taken where nobody chose any: what some of its samples speak for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ali_dist.data.shards.json_values import (
    has_value,
    is_binary,
    is_class_number,
    is_missing,
    is_number,
    is_whole_number,
    parse_object,
)
from ali_dist.data.shards.tar_labels import MAX_NAME, NO_LABELS, FoundLabels, LabelChoice

_CLASS_FIELDS = ("label", "class")  # of json: what others call the class there
_MAX_LISTED = 12


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
                broken = broken or f"the json of sample {key!r} {str(error).removeprefix('its json ')}"
    if not objects:
        return FoundLabels(NO_LABELS, broken and f"No labels are taken: {broken}.")
    contents = [content for _, content in objects]
    for name in _CLASS_FIELDS:
        if _is_class_field([content.get(name) for content in contents]):
            note = f"json's {name!r} is taken as the class; --labels none leaves it alone."
            return FoundLabels(LabelChoice("class", (name,)), note)
    numbers = _find_attributes(contents)
    are_binary = all(is_binary(value) for content in contents for value in content.values() if has_value(value))
    partial = _explain_partial(objects, numbers) if are_binary else ""
    if numbers and are_binary and all(map(str.isprintable, numbers)):
        taken = "; ".join(filter(None, (_list_some(numbers), partial)))
        note = f"json's numbers, all 0 or 1, are taken as attributes ({taken})."
        return FoundLabels(LabelChoice("binary", numbers), note)
    names = _list_some(tuple(dict.fromkeys(name for content in contents for name in content)))
    reasons = [
        *(_describe_empty(name, contents) for name in _CLASS_FIELDS if any(name in content for content in contents)),
        _offer_fields(names),
        partial,
        broken,
    ]
    return FoundLabels(NO_LABELS, f"No labels are taken: {'; '.join(filter(None, reasons))}.")


def _offer_fields(names: str) -> str:
    """How to ask for the fields of json that are listed in `names`."""
    return f"json has {names}, of which --labels json:FIELD takes one as the class and json:FIELD,FIELD attributes"


def _is_class_field(values: Sequence[object]) -> bool:
    """Whether the values of a field of json are classes: whole numbers, though some may be missing."""
    return any(map(is_class_number, values)) and all(is_missing(value) or is_whole_number(value) for value in values)


def _find_attributes(contents: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The fields that the json of all samples has, and that are numbers in half of them at least."""
    names = []
    for name in contents[0]:
        if name in _CLASS_FIELDS or not all(name in content for content in contents):
            continue
        values = [content[name] for content in contents if content[name] is not None]
        if values and 2 * sum(map(is_number, values)) >= len(values):
            names.append(name)
    return tuple(names)


def _explain_partial(objects: Sequence[tuple[str, Mapping[str, Any]]], taken: Sequence[str]) -> str:
    """What is said of numbers that are no attributes because some samples have none."""
    partial: dict[str, str] = {}  # by name: a sample without it
    for _, content in objects:
        for name, value in content.items():
            if is_number(value) and name not in (*taken, *_CLASS_FIELDS, *partial):
                lacking = next((key for key, other in objects if name not in other), None)
                if lacking is not None:
                    partial[name] = lacking
    if not partial:
        return ""
    first = next(iter(partial))
    verb = "is" if len(partial) == 1 else "are"
    return f"{_list_some(tuple(partial))} {verb} left alone, as sample {partial[first]!r} has no {first!r}"


def _describe_empty(name: str, contents: Sequence[Mapping[str, Any]]) -> str:
    values = [content.get(name) for content in contents]
    return f"json's {name!r} is null in all samples that were looked at" if all(map(is_missing, values)) else ""


def _list_some(names: Sequence[str]) -> str:
    shown = [name if name.isprintable() and len(name) <= MAX_NAME else ascii(name[:MAX_NAME]) for name in names]
    return ", ".join(shown[:_MAX_LISTED]) + ", ..." * (len(names) > _MAX_LISTED)
