"""Labels as fields of our own WebDataset samples: `cls` is a class number, `json` an object of attributes."""

from __future__ import annotations

import json
from collections.abc import Sequence

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
