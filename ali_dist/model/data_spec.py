"""What networks, evaluation and a checkpoint know of the data: their shape and their labels, without the shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ali_dist.errors import InputError


@dataclass(frozen=True, slots=True)
class DataSpec:
    """What a model has to know of its data. An index has one (`Index.spec`), and every checkpoint keeps it.

    Attributes:
        shape: Shape of a stored sample, (C, H, W) or (D,).
        dtype: uint8 or float32.
        classes: Names of the classes, or empty.
        attributes: Names of the attributes, or empty.
        mixture: For Gaussian mixtures, `means` [K, D] and `std`.
    """

    shape: tuple[int, ...]
    dtype: str = "uint8"
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    mixture: dict[str, Any] | None = None

    @property
    def is_images(self) -> bool:
        """Whether samples are images, [C, H, W], and not points, [D]."""
        return len(self.shape) == 3

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, or of the attributes where there are no classes; empty without labels."""
        return self.classes or self.attributes

    @classmethod
    def from_mapping(cls, saved: Mapping[str, Any]) -> Self:
        """Inverse of `to_mapping`.

        Raises:
            InputError: The mapping does not describe data.
        """
        try:
            parts = {name: _tuple_of(saved, name, kind) for name, kind in _PARTS.items()}
            return cls(**parts, dtype=str(saved["dtype"]), mixture=saved["mixture"])
        except (KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"What the checkpoint says of its data is not complete ({reason}): use another checkpoint."
            ) from error

    def to_mapping(self) -> dict[str, Any]:
        """A JSON-able mapping, as checkpoints keep it."""
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "classes": list(self.classes),
            "attributes": list(self.attributes),
            "mixture": self.mixture,
        }


_PARTS: dict[str, type] = {"shape": int, "classes": str, "attributes": str}


def _tuple_of(saved: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    """What is saved under the name, if it is a list of this kind.

    Raises:
        KeyError, TypeError: There is nothing, or something else.
    """
    values = saved[name]
    if not isinstance(values, list | tuple) or not all(type(value) is kind for value in values):
        raise TypeError(f"{name} is {str(values)[:40]!r}")
    return tuple(values)
