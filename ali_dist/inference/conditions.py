"""The conditions that a user asks a conditional model for: a class, or values of some attributes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError
from ali_dist.inference.load import LoadedRun


@dataclass(frozen=True, slots=True)
class ConditionQuery:
    """The entries of a condition that a user asks for; the others are left open.

    Attributes:
        label: What is asked for in words, for file names; empty where nothing is.
        entries: Values by their place in the condition.
        size: Numbers in a condition.
    """

    label: str
    entries: dict[int, float]
    size: int

    @property
    def is_complete(self) -> bool:
        """Whether no entry is left open."""
        return len(self.entries) == self.size

    def apply_to(self, c: Tensor | None) -> Tensor | None:
        """Put the entries that are asked for into conditions `c` [N, A]; None stays None."""
        if c is None or not self.entries:
            return c
        places = torch.tensor(list(self.entries))
        return c.index_copy(1, places, torch.tensor(list(self.entries.values())).expand(len(c), -1))


def parse_condition(run: LoadedRun, class_text: str | None, attributes_text: str | None) -> ConditionQuery:
    """Parse what `--class` and `--attributes` ask for.

    Args:
        run: The run of the model.
        class_text: Name or number of a class; None: not given.
        attributes_text: Values of attributes, such as `Smiling=1,Male=0`; None: not given.

    Raises:
        InputError: The model is not conditional on that, or there is no such class or attribute.
    """
    kind = run.config.model.condition
    size = run.model.condition_size
    options = (("--class", class_text, "classes"), ("--attributes", attributes_text, "attributes"))
    for option, text, needed_kind in options:
        if text is not None and kind != needed_kind:
            state = "is not conditional" if kind == "none" else f"is conditional on {kind}"
            raise InputError(
                f"{option} is for a model that is conditional on {needed_kind}, but run {run.name!r} {state}: "
                f"leave it out, or train with --model.condition {needed_kind}."
            )
    if class_text is not None:
        number = find_class(run, class_text)
        return ConditionQuery(class_text, {place: float(place == number) for place in range(size)}, size)
    return ConditionQuery(attributes_text or "", _parse_entries(run.spec.attributes, attributes_text or ""), size)


def find_class(run: LoadedRun, text: str) -> int:
    """Find a class by its name or its number.

    Raises:
        InputError: There is no such class.
    """
    names = run.spec.classes
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise InputError(
        f"There is no class {text!r}{did_you_mean(text, names).removesuffix('?')}; the classes of run {run.name!r} "
        f"are, from 0: {_list_names(names)}."
    )


def find_attributes(names: tuple[str, ...], text: str) -> list[int]:
    """Find the places of comma-separated attributes.

    Raises:
        InputError: One of them does not exist.
    """
    return [find_attribute(names, word.strip()) for word in text.split(",")]


def _parse_entries(names: tuple[str, ...], text: str) -> dict[int, float]:
    entries = {}
    for word in filter(str.strip, text.split(",")):
        name, equals, value = (part.strip() for part in word.partition("="))
        place = find_attribute(names, name)
        if not equals or value not in ("0", "1"):
            raise InputError(f"--attributes holds {word.strip()!r}, but attributes are given as {name}=1 or {name}=0.")
        entries[place] = float(value)
    return entries


def find_attribute(names: tuple[str, ...], name: str) -> int:
    """Find the place of an attribute.

    Raises:
        InputError: There is no such attribute.
    """
    if name not in names:
        hint = did_you_mean(name, names).removesuffix("?")
        raise InputError(f"There is no attribute {name!r}{hint}; attributes: {_list_names(names)}.")
    return names.index(name)


def _list_names(names: tuple[str, ...], most: int = 40) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
