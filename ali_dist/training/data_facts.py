"""What a checkpoint remembers of its training data, so that the networks can be used without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ali_dist.data.index import Index
from ali_dist.errors import InputError


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is used of the data's index beside its shards.

    Attributes:
        shape: Of a stored sample, (C, H, W) or (D,).
        dtype: uint8 or float32.
        classes: Names of the classes, or empty.
        attributes: Names of the attributes, or empty.
        mixture: Of Gaussian mixtures: `means` [K, D] and `std`.
    """

    shape: tuple[int, ...]
    dtype: str
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    mixture: dict[str, Any] | None = None

    @classmethod
    def of(cls, index: Index) -> Self:
        """The facts in an index."""
        return cls(tuple(index.shape), index.dtype, index.classes, index.attributes, index.extra.get("mixture"))

    @classmethod
    def from_mapping(cls, saved: Mapping[str, Any]) -> Self:
        """Inverse of `to_mapping`.

        Raises:
            InputError: These are no such facts.
        """
        try:
            names = {name: tuple(saved[name]) for name in ("shape", "classes", "attributes")}
            return cls(**names, dtype=str(saved["dtype"]), mixture=saved["mixture"])
        except (KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"What the checkpoint says of its data is not complete ({reason}): use another checkpoint."
            ) from error

    def to_mapping(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "classes": list(self.classes),
            "attributes": list(self.attributes),
            "mixture": self.mixture,
        }
