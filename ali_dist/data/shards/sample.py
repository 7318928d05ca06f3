"""One sample on its way into a shard, and a count of what was done to samples before they were stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ali_dist.data.shards.labels import Label
from ali_dist.names import printable_name

NAMED = 20  # samples that a count names


@dataclass(frozen=True, slots=True)
class PreparedSample:
    """A sample as it will be stored.

    Attributes:
        x: The numbers, [*shape].
        label: A class number, an attribute vector [A], or None.
        origin: What the user knows it by, such as its file's path below the folder; "" where it has no name.
        treatments: What was done to it on the way, in the words that the index counts, such as `background`.
    """

    x: NDArray[Any]
    label: Label | None = None
    origin: str = ""
    treatments: frozenset[str] = frozenset()


class NamedCounts:
    """Counts samples or files by a word, and gives the printable names of the first of each.

    In JSON it is `{"background": {"count": 3, "first": ["a.png", "b.png", "c.png"]}}`.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, list[str]] = {}

    def add(self, word: str, name: str, count: int = 1) -> None:
        """Count `count` samples under `word`, of which `name` is one."""
        self._counts[word] = self._counts.get(word, 0) + count
        first = self._first.setdefault(word, [])
        if len(first) < NAMED:
            first.append(printable_name(name))

    def add_all(self, words: Iterable[str], name: str) -> None:
        """Count one sample under each of some words."""
        for word in sorted(words):
            self.add(word, name)

    def merge(self, other: NamedCounts) -> None:
        """Add what another object has counted after this one."""
        self.add_json(other.to_json())

    def to_json(self) -> dict[str, Any]:
        """The counts, by word."""
        return {word: {"count": self._counts[word], "first": self._first[word]} for word in sorted(self._counts)}

    def add_json(self, content: Mapping[str, Any]) -> None:
        """Add what `to_json` says.

        Raises:
            ValueError, TypeError, KeyError: It says something else.
        """
        for word, entry in content.items():
            self._counts[word] = self._counts.get(word, 0) + int(entry["count"])
            first = self._first.setdefault(word, [])
            first += [str(name) for name in entry["first"]][: NAMED - len(first)]
