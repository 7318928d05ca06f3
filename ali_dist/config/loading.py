"""From dotted names and text to a `Config`: presets, command-line overrides, mappings.

Layers are merged in order, later ones win, and the result is validated once. A misspelt name or a bad value is one
sentence with the nearest valid name or what is allowed. Importing this module imports neither torch nor ray.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from ali_dist.config import Config
from ali_dist.config.setting import show_value
from ali_dist.config.suggestions import did_you_mean as did_you_mean
from ali_dist.config.yaml_files import describe_yaml_error, parse_yaml_text
from ali_dist.errors import InputError

Mapping_ = Mapping[str, Any]
_LARGEST_INT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SettingInfo:
    """One setting, for help texts and error messages."""

    key: str
    type: Any
    default: Any
    help: str

    def allowed(self) -> str:
        """What a value may be, in words."""
        return _describe_type(self.type)


def _allowed_types(kind: Any) -> tuple[Any, ...]:
    """The types an annotation allows: `int | None` gives (int, NoneType)."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        words = get_args(kind)
        return " or ".join(map(repr, words)) if len(words) < 3 else f"one of {', '.join(words)}"
    if type(None) in _allowed_types(kind):
        return (
            " or ".join(_describe_type(option) for option in _allowed_types(kind) if option is not type(None))
            + ", or none"
        )
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


@cache
def setting_infos() -> dict[str, SettingInfo]:
    """Every setting by its dotted name, in schema order."""
    found = {}
    hints = typing.get_type_hints(Config)
    for section in dataclasses.fields(Config):
        cls = hints[section.name]
        kinds = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            key = f"{section.name}.{f.name}"
            found[key] = SettingInfo(key=key, type=kinds[f.name], default=f.default, help=f.metadata["help"])
    return found


def _parse_number(value: Any) -> int | float:
    """A finite number from a number or its text ('3e-4' too); an int wherever it is whole, exact at any size.

    Raises:
        TypeError, ValueError, OverflowError: it is no such number; a bool is none either.
    """
    if isinstance(value, bool):
        raise TypeError
    try:
        return int(str(value))
    except ValueError:
        number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return int(number) if number.is_integer() else number


def _parse_as(kind: Any, value: Any) -> Any:
    """`value` as one of the types that `_allowed_types` gives.

    Raises:
        TypeError, ValueError, OverflowError: it is not of that type.
    """
    if kind is type(None) and (value is None or value in ("none", "null")):
        return None
    if get_origin(kind) is Literal and value in get_args(kind):
        return value
    if kind is bool and str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    if kind is float:
        return float(_parse_number(value))
    if kind is int and isinstance(number := _parse_number(value), int) and abs(number) <= _LARGEST_INT:
        return number
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool) and str(value).strip():
        return str(value)
    raise ValueError


def _parse_value(info: SettingInfo, value: Any) -> Any:
    """`value` (from YAML, JSON or the command line) as the field's type, or InputError."""
    options = _allowed_types(info.type)
    for kind in sorted(options, key=lambda option: option is not type(None)):  # 'none' is no text where None is meant
        with suppress(TypeError, ValueError, OverflowError):
            return _parse_as(kind, value)
    if value is None:
        raise InputError(
            f"{info.key} is given no value, but must be {info.allowed()}: give one, or leave {info.key} out."
        )
    words = [word for kind in options if get_origin(kind) is Literal for word in get_args(kind)]
    raise InputError(
        f"{info.key} is {show_value(value)}, but must be {_describe_allowed(info, options, str(value))}"
        f"{did_you_mean(str(value), words) or '.'}"
    )


def _describe_allowed(info: SettingInfo, options: Collection[Any], text: str) -> str:
    """What a setting allows; where a value is of its type, but none of its values, what is missing to it."""
    if str in options and not text.strip():
        return "text that is not empty"
    try:
        number = float(text)
    except ValueError:
        return info.allowed()
    if int in options and abs(number) > _LARGEST_INT:
        return f"a whole number of at most {_LARGEST_INT:,}"
    return "a finite number" if float in options and not math.isfinite(number) else info.allowed()


def parse_setting(key: str, value: Any) -> Any:
    """The value of one setting as its type.

    Raises:
        InputError: It is none.
    """
    return _parse_value(setting_infos()[key], value)


def flatten_mapping(layer: Mapping_, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mapping to (dotted name, value) pairs; dotted keys are accepted as they are, empty mappings are values."""
    for key, value in layer.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten_mapping(value, f"{name}.")
        else:
            yield name, value


def from_mapping(*layers: Mapping_) -> Config:
    """Build a Config from layers (nested or dotted mappings); later layers win.

    Raises:
        InputError: an unknown name (with the nearest valid one) or a bad value (with what is allowed).
    """
    known = setting_infos()
    sections: dict[str, dict[str, Any]] = {f.name: {} for f in dataclasses.fields(Config)}
    for layer in layers:
        for key, value in flatten_mapping(layer):
            if key in sections:
                if value:
                    raise InputError(f"{key} is {value!r}, but must be a section, such as data: {{split: train}}.")
                continue  # a section without settings in it
            if key not in known:
                raise InputError(
                    f"There is no setting {key!r}{did_you_mean(key, known) or '; --help lists all settings.'}"
                )
            section, _, name = key.partition(".")
            sections[section][name] = _parse_value(known[key], value)
    hints = typing.get_type_hints(Config)
    return Config(**{name: hints[name](**values) for name, values in sections.items()})


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("ali_dist") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def _find_preset(name: str, folder: Path) -> Path:
    """The file of a shipped preset, or a YAML file given relative to `folder`."""
    if name.endswith((".yaml", ".yml")):
        path = folder / name
        if not path.is_file():
            raise InputError(f"Preset file {str(path)!r} does not exist; shipped presets: {', '.join(preset_names())}.")
        return path
    if name not in preset_names():
        hint = did_you_mean(name, preset_names()).removesuffix("?")
        raise InputError(f"There is no preset {name!r}{hint}; presets: {', '.join(preset_names())}.")
    return Path(str(resources.files("ali_dist") / "presets" / f"{name}.yaml"))


def _read_preset(path: Path) -> dict[str, Any]:
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        loaded = parse_yaml_text(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = describe_yaml_error(error, text)
        raise InputError(f"Preset {path.name!r} cannot be read as YAML: {reason}.") from error
    if not isinstance(loaded, dict):
        raise InputError(f"Preset {path.name!r} is no mapping; a preset holds sections, such as 'optim:'.")
    return loaded


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset with those that it builds on.

    Attributes:
        name: Without folder and ending.
        settings: By dotted name, as text; `from_mapping` gives them their types.
        sized_by: What decides the settings that it leaves open: 'images' (`runs/image_sizes.py`), or None.
        note: What the user is told about that; empty if there is nothing to tell.
        users_own: Names of the settings that a file of the user's gives: whoever wrote it has asked for them.
        source: The built-in data that it is made for, as `data.source` names them, even if other data are given.
    """

    name: str
    settings: dict[str, Any]
    sized_by: str | None
    note: str = ""
    users_own: frozenset[str] = frozenset()
    source: str = ""


def load_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, by dotted name, see `read_preset`."""
    return read_preset(name).settings


def read_preset(name: str) -> Preset:
    """A shipped preset, or a YAML file if `name` ends in .yaml or .yml.

    A preset may build on another one, `base: NAME`, and override it; a base file is looked for beside the preset.

    Raises:
        InputError: no such preset or file, the file is not a YAML mapping, or presets build on each other in a ring.
    """
    layers: list[dict[str, Any]] = []
    paths: list[Path] = []
    shipped = set(preset_names())
    users_own: set[str] = set()
    base: str | None = name
    folder = Path()
    while base is not None:
        path = _find_preset(base, folder)
        if path.resolve() in paths:
            raise InputError(f"Preset {name!r} builds on itself, by way of 'base: {base}': take that line out.")
        paths.append(path.resolve())
        layers.append(_read_preset(path))
        if base not in shipped:
            users_own.update(key for key, _ in flatten_mapping(layers[-1]))
        base, folder = layers[-1].pop("base", None), path.parent
        if not isinstance(base, str | None):
            raise InputError(f"Preset {path.name!r} has 'base: {base!r}', but a base is the name of one preset.")
    sized_by = next((layer["sized_by"] for layer in layers if "sized_by" in layer), None)
    if sized_by not in (None, "images", "none"):
        raise InputError(f"Preset {name!r} has 'sized_by: {sized_by}', but that must be 'images' or 'none'.")
    settings: dict[str, Any] = {}
    for layer in reversed(layers):
        flat = dict(flatten_mapping(layer))
        settings = without_foreign_source(settings, flat) | {k: v for k, v in flat.items() if k != "sized_by"}
    source = next((layer for layer in map(_source_of, layers) if layer), "")
    return Preset(
        Path(name).stem,
        settings,
        None if sized_by == "none" else sized_by,
        users_own=frozenset(users_own),
        source=source,
    )


def _source_of(layer: Mapping_) -> str:
    """The built-in data that a layer names; empty if it names none."""
    source = dict(flatten_mapping(layer)).get("data.source")
    return source if isinstance(source, str) and source != "none" else ""


def without_foreign_source(settings: Mapping_, later: Mapping_) -> dict[str, Any]:
    """Settings without their `data.source` where a later layer names another `data.url`, and no source for it.

    Built-in data are written to the place that comes with them, or where they are asked for by name: never into a
    folder that somebody names as the place of data of their own.

    Args:
        settings: By dotted name.
        later: The layer on top of them, likewise.
    """
    place = settings.get("data.url", setting_infos()["data.url"].default)
    is_same_place = "data.url" not in later or _same_place(str(place), str(later["data.url"]))
    if "data.source" in later or is_same_place:
        return dict(settings)
    return {key: value for key, value in settings.items() if key != "data.source"}


def _same_place(first: str, second: str) -> bool:
    """Whether two urls name the same folder or prefix."""
    if "://" in first or "://" in second:
        return first.rstrip("/") == second.rstrip("/")
    return Path(first).absolute() == Path(second).absolute()


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """`['--optim.lr_d', '1e-4', '--run.name=x']` to `{'optim.lr_d': '1e-4', 'run.name': 'x'}`.

    Raises:
        InputError: something that is not `--section.key value`.
    """
    layer: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InputError(f"{word!r} was not expected; settings are given as --section.key value.")
        key, equals, value = word[2:].partition("=")
        if key not in setting_infos():
            raise InputError(
                f"There is no setting {key!r}{did_you_mean(key, setting_infos()) or '; --help lists all settings.'}"
            )
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"--{key} needs a value: {setting_infos()[key].allowed()}.")
            value = rest.pop(0)
        layer[key] = value
    return layer
