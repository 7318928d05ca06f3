"""Which preset a run was made from: run folders keep all settings, but not the preset's name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from ali_dist.config.loading import flatten_mapping, from_mapping, preset_names, read_preset, setting_infos

_LEARNING = ("data", "model", "objective", "optim")
_NOT_LEARNING = ("url", "source", "residency", "memory_mb", "cache_dir", "cache_gb", "prefetch", "bad_samples")
_MOST_CHANGES = 12
"""With more settings changed than that, a run has little left of a preset."""


def find_closest_preset(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """The preset that shares most settings with a run, of those that decide what is learned.

    Args:
        config: All settings of the run, nested, as config.json has them; settings of other versions do not count.

    Returns:
        Its name and how many settings differ; None where the run is far from every preset.
    """
    given = dict(flatten_mapping(config))
    changes = {
        name: sum(given.get(key, value) != value for key, value in settings.items())
        for name, settings in _presets().items()
    }
    name = min(changes, key=lambda preset: changes[preset])
    return (name, changes[name]) if changes[name] <= _MOST_CHANGES else None


@cache
def _presets() -> dict[str, dict[str, Any]]:
    keys = [key for key in setting_infos() if _is_learning(*key.split("."))]
    presets = {}
    for name in preset_names():
        settings = dict(flatten_mapping(from_mapping(read_preset(name).settings).to_mapping()))
        presets[name] = {key: settings[key] for key in keys}
    return presets


def _is_learning(section: str, name: str) -> bool:
    return section in _LEARNING and not (section == "data" and name in _NOT_LEARNING)
