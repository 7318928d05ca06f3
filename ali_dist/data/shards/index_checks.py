"""What an index must say to be used: files may be damaged or made up in ways that are consistent and senseless."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ali_dist.data.shards.index import Index, Shard

ENCODINGS = ("raw", "png", "jpg", "npy", "image")
DTYPES = ("uint8", "float32")
_MEMBER_BYTES = 512  # that each sample takes in a tar at least, for the header of its payload
_MAX_VALUES = 2**31  # numbers in a sample
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXTS = ("background", "tars", "tars_endpoint_url")


def check_index(index: Index) -> None:
    """Refuse an index that is not consistent.

    Raises:
        ValueError: It is not; the message names the field.
        TypeError, AttributeError, ArithmeticError: A field has a type or a value with which nothing can be computed.
    """
    is_vector, is_image = len(index.shape) == 1, len(index.shape) == 3
    rules = {
        "encoding": index.encoding in ENCODINGS,
        "dtype": index.dtype in DTYPES and (index.encoding == "raw" or index.dtype == "uint8"),
        "shape": (is_image or (is_vector and index.encoding == "raw"))
        and all(type(n) is int and n > 0 for n in index.shape)
        and math.prod(index.shape) <= _MAX_VALUES,
        "classes": _are_texts(index.classes),
        "attributes": _are_texts(index.attributes),
    }
    _refuse_broken(rules)
    _refuse_broken(
        {
            "mean": len(index.mean) == index.shape[0] and _are_finite(index.mean),
            "std": len(index.std) == index.shape[0] and _are_finite(index.std),
            "pixel_mean": len(index.pixel_mean) == math.prod(index.shape) and _are_finite(index.pixel_mean),
            "extra": _is_extra(index.extra),
            "shards": all(_is_shard(shard) for shard in index.shards)
            and len({shard.key for shard in index.shards}) == len(index.shards)
            and index.num_samples > 0,
        }
    )


def _refuse_broken(rules: Mapping[str, bool]) -> None:
    for name, is_kept in rules.items():
        if not is_kept:
            raise ValueError(f"its {name} does not fit the rest")


def _is_shard(shard: Shard) -> bool:
    """Whether a shard can be as it is described; one that claims more samples than bytes would be planned for ever."""
    if type(shard.samples) is not int or type(shard.bytes) is not int:
        raise TypeError(f"its shards have no whole numbers of samples and bytes ({shard.samples!r}, {shard.bytes!r})")
    return (
        isinstance(shard.key, str)
        and shard.key.endswith(".tar")
        and 0 <= shard.samples * _MEMBER_BYTES <= shard.bytes < 2**63
        and all(_SHA256.fullmatch(digest) is not None for digest in (shard.sha256, shard.sidecar_sha256))
    )


def _is_extra(extra: Any) -> bool:
    """Whether the facts that the program itself uses have the types that it expects."""
    return (
        isinstance(extra, dict)
        and isinstance(extra.get("source", {}), dict)
        and isinstance(extra.get("mixture", {}) or {}, dict)
        and isinstance(extra.get("tars_anonymous", False), bool)
        and all(isinstance(extra.get(name, ""), str) for name in _TEXTS)
    )


def _are_texts(names: Iterable[object]) -> bool:
    return all(isinstance(name, str) for name in names)


def _are_finite(values: Iterable[Any]) -> bool:
    return all(type(value) in (int, float) and math.isfinite(value) for value in values)
