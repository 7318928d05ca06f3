"""Labels as fields of a WebDataset sample: `cls` is a class number in ASCII, `json` an object of attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.shards.sidecar import Labels
from ali_dist.errors import InputError

Label = int | Sequence[float] | NDArray[np.float32]


def encode_label(label: Label | None, attributes: Sequence[str]) -> dict[str, bytes]:
    """Encode a label as a field: cls for a class number, json for a vector of `attributes`, no field for None.

    Raises:
        InputError: The vector does not have one number for each attribute.
    """
    if label is None:
        return {}
    if isinstance(label, int | np.integer):
        return {"cls": str(int(label)).encode()}
    values = np.asarray(label, dtype=np.float32)
    if values.shape != (len(attributes),):
        raise InputError(
            f"A label has shape {values.shape}, but must be a class number or {len(attributes)} attributes."
        )
    return {"json": json.dumps(dict(zip(attributes, values.tolist(), strict=True))).encode()}


def parse_label(fields: Mapping[str, bytes], attributes: Sequence[str]) -> Label | None:
    """Parse the label in a sample's fields; where there are both, cls is taken and not json.

    Args:
        fields: The content of the sample's fields by name.
        attributes: The names to take from json; without them json is passed over.

    Raises:
        ValueError: A field does not hold a label; the message says why.
    """
    if "cls" in fields:
        text = fields["cls"].decode("ascii", "replace").strip()
        if not text.isdigit():
            raise ValueError(f"its cls is {text[:20]!r}, but must be a class number from 0 up")
        return int(text)
    if "json" not in fields or not attributes:
        return None
    content = parse_object(fields["json"])
    missing = [name for name in attributes if not is_number(content.get(name))]
    if missing:
        raise ValueError(f"its json has no number {missing[0]!r}, which the first sample has")
    return np.array([content[name] for name in attributes], dtype=np.float32)


def numeric_names(data: bytes) -> tuple[str, ...]:
    """Find the names of the numbers and booleans in a json object, in the file's order.

    Raises:
        ValueError: It is not a json object.
    """
    return tuple(name for name, value in parse_object(data).items() if is_number(value))


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse a json object.

    Raises:
        ValueError: It is not a json object.
    """
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("its json is not an object")
    return content


def is_number(value: object) -> bool:
    """Whether a value can be an attribute: a number or a boolean."""
    return isinstance(value, int | float)


def join_labels(labels: Sequence[Label | None], where: str) -> Labels | None:
    """Join the labels of a shard to one array: int64 [n], float32 [n, A], or None if there are no labels.

    Raises:
        InputError: The labels are of different kinds, or only some samples have one; the message names `where`.
    """
    kinds = {"none" if v is None else "class" if isinstance(v, int | np.integer) else "attributes" for v in labels}
    if len(kinds) > 1:
        raise InputError(
            f"Samples of {where} have different kinds of label ({', '.join(sorted(kinds))}): give all the same kind."
        )
    if kinds == {"none"}:
        return None
    if kinds == {"class"}:
        return np.array(labels, dtype=np.int64)
    return np.stack([np.asarray(label, dtype=np.float32) for label in labels])
