"""What a sweep varies: dotted names of settings, and the values each of them may take. Pure: no Ray, no clock.

A space is a YAML mapping of settings (the names of `python -m ali_dist.train --help`) to one of:

    optim.lr_d: {loguniform: [1.0e-4, 1.0e-2]}         # evenly spread in the logarithm
    model.discriminator_dropout: {uniform: [0, 0.3]}   # evenly spread
    model.latent_size: {int: [8, 32]}                  # whole numbers, both ends included
    objective.loss: [relativistic, nonsaturating]      # one of these

Settings that are not listed keep the preset's value.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from ali_dist.config.loading import did_you_mean, flatten_mapping, from_mapping, setting_infos
from ali_dist.config.yaml_files import describe_yaml_error, parse_typed_yaml
from ali_dist.errors import InputError

Kind = Literal["loguniform", "uniform", "int", "choice"]
Settings = Mapping[str, Any]

RANGES: tuple[Kind, ...] = ("loguniform", "uniform", "int")
GRID_POINTS = 3
"""Values that a grid takes from a range: its ends and what lies between them."""
_DIGITS = 4
"""Significant digits of a drawn number: what is read off a table is then exactly what was trained with."""
_NOT_SEARCHABLE = ("run.name", "run.dir", "run.images", "scale.workers", "scale.device", "report.evaluation")
"""Settings that the sweep itself sets, or that would make trials incomparable."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """One setting of a space.

    Attributes:
        name: Its dotted name.
        kind: How values are drawn.
        values: The ends (low, high) of a range, or the options of a choice.
    """

    name: str
    kind: Kind
    values: tuple[Any, ...]

    def value_at(self, share: float) -> Any:
        """The value at `share` (0 to 1) of the way through the range or the list of options."""
        if self.kind == "choice":
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.kind == "int":
            return low + min(int(share * (high - low + 1)), high - low)
        if self.kind == "loguniform":
            value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            value = low + share * (high - low)
        return self.round_value(value)

    def round_value(self, value: Any) -> Any:
        """A suggested value; a float of a range is rounded to as many digits as a table shows, and stays inside."""
        if self.kind not in ("loguniform", "uniform"):
            return value
        low, high = self.values
        return min(max(float(f"{value:.{_DIGITS}g}"), low), high)

    def grid_values(self) -> list[Any]:
        """The values of a grid: every option of a choice, `GRID_POINTS` values of a range."""
        if self.kind == "choice":
            return list(self.values)
        if self.kind == "int":
            low, high = self.values
            return sorted({round(low + k * (high - low) / (GRID_POINTS - 1)) for k in range(GRID_POINTS)})
        return [self.value_at(k / (GRID_POINTS - 1)) for k in range(GRID_POINTS)]

    def contains(self, value: Any) -> bool:
        """Whether the space could have given this value: a preset's own value may lie outside."""
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        return isinstance(value, int | float) and low <= value <= high

    def extreme_values(self) -> list[Any]:
        """The ends of a range, or all options of a choice."""
        return list(self.values)


Space = tuple[Dimension, ...]


def space_names() -> list[str]:
    """Names of the spaces that ship with the package."""
    folder = resources.files("tuning") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_space(name: str) -> Space:
    """The space of a shipped name, or of a YAML file if `name` ends in .yaml or .yml.

    Raises:
        InputError: There is no such space, or the file does not hold one.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise InputError(f"Search space {name!r} does not exist; shipped spaces: {', '.join(space_names())}.")
    elif name in space_names():
        path = Path(str(resources.files("tuning") / "presets" / f"{name}.yaml"))
    else:
        hint = did_you_mean(name, space_names()).removesuffix("?")
        raise InputError(f"There is no search space {name!r}{hint}; spaces: {', '.join(space_names())}.")
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        loaded = parse_typed_yaml(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"Search space {name!r} cannot be read: {describe_yaml_error(error, text)}.") from error
    if not isinstance(loaded, dict) or not loaded:
        raise InputError(f"Search space {name!r} is no mapping of settings, such as 'optim.lr_d: {{loguniform: ...}}'.")
    return parse_space(loaded)


def parse_space(mapping: Mapping[str, Any]) -> Space:
    """Dimensions from a mapping (nested or dotted) as it stands in YAML.

    Raises:
        InputError: A misspelt setting (the message has the nearest one), or a range without an extent.
    """
    return tuple(_parse_dimension(name, value) for name, value in dict(_space_entries(mapping)).items())


def _space_entries(mapping: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Pairs of a dotted name and a description: like `flatten_mapping`, but a description may be a mapping itself."""
    entries: list[tuple[str, Any]] = []
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        sections = {known.partition(".")[0] for known in setting_infos()}
        if isinstance(value, Mapping) and name in sections:
            entries += _space_entries(value, f"{name}.")
        else:
            entries.append((name, value))
    return entries


def _parse_dimension(name: str, description: Any) -> Dimension:
    if name not in setting_infos():
        raise InputError(
            f"There is no setting {name!r} to search"
            f"{did_you_mean(name, setting_infos()) or '; python -m ali_dist.train --help lists all settings.'}"
        )
    if name in _NOT_SEARCHABLE:
        raise InputError(f"{name} cannot be searched, because the sweep sets it for every trial: take it out.")
    kind: Kind
    kind, values = ("choice", description) if isinstance(description, list) else _parse_kind(name, description)
    if not isinstance(values, list) or not values:
        raise InputError(f"{name} is searched over {values!r}, but {kind} needs a list, such as [1, 2].")
    if kind == "choice":
        return Dimension(name, "choice", tuple(values))
    return _parse_range(name, kind, values)


def _parse_kind(name: str, description: Any) -> tuple[Kind, Any]:
    kinds: tuple[Kind, ...] = (*RANGES, "choice")
    if isinstance(description, Mapping) and len(description) == 1:
        word, values = next(iter(description.items()))
        for kind in kinds:
            if word == kind:
                return kind, values
        hint = did_you_mean(str(word), kinds).removesuffix("?")
        raise InputError(f"{name} is searched by {word!r}{hint}; ways to draw: {', '.join(kinds)}.")
    raise InputError(
        f"{name} is searched over {description!r}, but must be a list of values or one of "
        f"{', '.join(f'{{{kind}: [low, high]}}' for kind in RANGES)}."
    )


def _parse_range(name: str, kind: Kind, values: list[Any]) -> Dimension:
    try:
        low, high = (int(str(v)) if kind == "int" else float(v) for v in values)
    except (TypeError, ValueError):
        expected = "two whole numbers" if kind == "int" else "two numbers"
        raise InputError(f"{name} is searched over {values!r}, but {kind} needs {expected}, [low, high].") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{name} is searched over {values!r}, but {kind} needs [low, high] with low below high.")
    if kind == "loguniform" and low <= 0:
        raise InputError(f"{name} is searched over {values!r}, but loguniform needs a low end above 0.")
    return Dimension(name, kind, (low, high))


def draw_settings(space: Space, seed: int, number: int) -> dict[str, Any]:
    """Settings of random trial `number`; they depend on nothing else, so that a resumed sweep draws the same."""
    generator = random.Random(f"{seed}/{number}")  # noqa: S311  (no secret)
    return {dimension.name: dimension.value_at(generator.random()) for dimension in space}


def grid_settings(space: Space) -> list[dict[str, Any]]:
    """Settings of every trial of a full grid, the last dimension turning fastest."""
    names = [dimension.name for dimension in space]
    return [dict(zip(names, row, strict=True)) for row in itertools.product(*(d.grid_values() for d in space))]


def check_space(space: Space, base: Sequence[Settings]) -> None:
    """Refuse values that cannot work with the preset before anything starts.

    Args:
        space: The search space.
        base: Layers of settings that every trial has (the preset, the user's settings).

    Raises:
        InputError: A trial could not be trained with one of the values; the message is the trial's own.
    """
    from_mapping(*base)
    for dimension in space:
        for value in dimension.extreme_values():
            try:
                from_mapping(*base, {dimension.name: value})
            except InputError as error:
                raise InputError(f"Searching {dimension.name}, value {value!r}: {error}") from error


def without_settings(space: Space, fixed: Settings) -> Space:
    """The space without the settings that the user has fixed on the command line.

    Raises:
        InputError: Nothing is left to search.
    """
    left = tuple(dimension for dimension in space if dimension.name not in fixed)
    if not left:
        raise InputError("Every setting of the search space is fixed on the command line: leave one of them out.")
    return left


def space_to_mapping(space: Space) -> dict[str, Any]:
    """The space as JSON and YAML have it; `parse_space` reads it."""
    return {d.name: {d.kind: list(d.values)} for d in space}


def searched_values(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a config (nested, from `Config.to_mapping`) has of the searched settings."""
    values = dict(flatten_mapping(config))
    return {dimension.name: values[dimension.name] for dimension in space}
