"""The conditions that a user asks of a conditional model: a class, or values of some attributes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError
from ali_dist.inference.load import LoadedRun


@dataclass(frozen=True, slots=True)
class ConditionQuery:
    """Entries of a condition that are asked for.

    Attributes:
        label: In words, for file names; empty where nothing is asked for.
        entries: Value by place in the condition.
        size: Numbers in a condition.
    """

    label: str
    entries: dict[int, float]
    size: int

    @property
    def complete(self) -> bool:
        """Whether nothing of a condition is left open."""
        return len(self.entries) == self.size

    def of(self, c: Tensor | None) -> Tensor | None:
        """`c` [N, A] with the entries that are asked for."""
        if c is None or not self.entries:
            return c
        places = torch.tensor(list(self.entries))
        return c.index_copy(1, places, torch.tensor(list(self.entries.values())).expand(len(c), -1))


def parse_condition(saved: LoadedRun, of_class: str | None, attributes: str | None) -> ConditionQuery:
    """What `--class` and `--attributes` say.

    Args:
        saved: The model.
        of_class: Name or number of a class.
        attributes: `Smiling=1,Male=0`.

    Raises:
        InputError: The model is not conditional on that, or there is no such class or attribute.
    """
    kind, size = saved.config.model.condition, saved.model.condition_size
    for option, text, needs in (("--class", of_class, "classes"), ("--attributes", attributes, "attributes")):
        if text is not None and kind != needs:
            is_now = "is not conditional" if kind == "none" else f"is conditional on {kind}"
            raise InputError(
                f"{option} is for a model that is conditional on {needs}, but run {saved.name!r} {is_now}: "
                f"leave it out, or train with --model.condition {needs}."
            )
    if of_class is not None:
        number = find_class(saved, of_class)
        return ConditionQuery(of_class, {place: float(place == number) for place in range(size)}, size)
    return ConditionQuery(attributes or "", _parse_entries(saved.facts.attributes, attributes or ""), size)


def find_class(saved: LoadedRun, text: str) -> int:
    """The class that `text` names, or numbers.

    Raises:
        InputError: There is none.
    """
    names = saved.facts.classes
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise InputError(
        f"There is no class {text!r}{did_you_mean(text, names).removesuffix('?')}; the {len(names)} classes of run "
        f"{saved.name!r} are, from 0: {_list_names(names)}."
    )


def find_attributes(names: tuple[str, ...], text: str) -> list[int]:
    """Places of comma-separated attributes.

    Raises:
        InputError: One of them does not exist.
    """
    return [_find_attribute(names, word.strip()) for word in text.split(",")]


def _parse_entries(names: tuple[str, ...], text: str) -> dict[int, float]:
    entries = {}
    for word in filter(str.strip, text.split(",")):
        name, equals, value = (part.strip() for part in word.partition("="))
        place = _find_attribute(names, name)
        if not equals or value not in ("0", "1"):
            raise InputError(f"--attributes holds {word.strip()!r}, but attributes are given as {name}=1 or {name}=0.")
        entries[place] = float(value)
    return entries


def _find_attribute(names: tuple[str, ...], name: str) -> int:
    if name not in names:
        hint = did_you_mean(name, names).removesuffix("?")
        raise InputError(f"There is no attribute {name!r}{hint}; attributes: {_list_names(names)}.")
    return names.index(name)


def _list_names(names: tuple[str, ...], most: int = 40) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
