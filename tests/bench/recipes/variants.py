"""The recipe that is varied, and its variants: one thing changed at a time, the most valuable first."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError

Settings = dict[str, Any]

BASE: Settings = {
    "data.global_batch_size": 64,
    "model.architecture": "residual",
    "model.latent_size": 64,
    "objective.loss": "relativistic",
    "objective.r1": 5.0,
    "objective.r2": 5.0,
    "objective.cycle_x": 2.5,
    "optim.lr_d": 1e-3,
    "optim.lr_g": 5e-4,
    "optim.schedule": "cosine",
    "optim.ema_half_life": 9_000,
}
"""What all variants have in common, unless they or the command line say otherwise."""


def _gamma(weight: float) -> Settings:
    return {"objective.r1": weight, "objective.r2": weight}


def _rates(lr_d: float, lr_g: float) -> Settings:
    return {"optim.lr_d": lr_d, "optim.lr_g": lr_g}


VARIANTS: dict[str, Settings] = {
    "base": {},
    "rgb32": {"model.architecture": "rgb32"},
    "gamma-1": _gamma(1.0),
    "augment-color-translation": {"objective.augment": "color,translation"},
    "penalty-every-4": {"objective.penalty_every": 4},
    "lr-5e-4": _rates(5e-4, 2.5e-4),
    "cycle-10": {"objective.cycle_x": 10.0},
    "lr-equal": _rates(1e-3, 1e-3),
    "gamma-2": _gamma(2.0),
    "latent-128": {"model.latent_size": 128},
    "unary": {"objective.unary": True},
    "batch-128": {"data.global_batch_size": 128},
    "width-2": {"model.width": 2.0},
    "depth-2": {"model.depth": 2},
    "augment-all": {"objective.augment": "color,translation,cutout"},
    "penalty-every-16": {"objective.penalty_every": 16},
    "cycle-1": {"objective.cycle_x": 1.0},
    "cycle-samples": {"objective.cycle_samples": 2.5},
    "lr-2e-3": _rates(2e-3, 1e-3),
    "gamma-10": _gamma(10.0),
    "beta1-0": {"optim.beta1": 0.0},
    "flip": {"data.flip": True},
    "latent-32": {"model.latent_size": 32},
    "nonsaturating": {"objective.loss": "nonsaturating"},
    "hinge": {"objective.loss": "hinge"},
    "cycle-0": {"objective.cycle_x": 0.0},
    "deterministic": {"model.encoder": "deterministic"},
    "width-0.5": {"model.width": 0.5},
    "ema-36000": {"optim.ema_half_life": 36_000},
    "ema-2000": {"optim.ema_half_life": 2_000},
    "penalty-every-8": {"objective.penalty_every": 8},
    "lr-2e-4": _rates(2e-4, 1e-4),
    "augment-half": {"objective.augment": "color,translation,cutout", "objective.augment_probability": 0.5},
    "augment-translation": {"objective.augment": "translation"},
    "augment-color": {"objective.augment": "color"},
    "batch-32": {"data.global_batch_size": 32},
}


def choose_variants(words: str | None) -> dict[str, Settings]:
    """Choose what to train: all (None), the named ones in the order of their names, or those of a JSON file.

    Raises:
        InputError: There is no such variant, or the file does not map names to settings.
    """
    if words is None:
        return dict(VARIANTS)
    if words.endswith(".json"):
        return read_variants(Path(words).expanduser())
    names = [name.strip() for name in words.split(",")]
    for name in names:
        if name not in VARIANTS:
            raise InputError(f"There is no variant {name!r}{did_you_mean(name, VARIANTS) or '; --list shows all.'}")
    return {name: VARIANTS[name] for name in names}


def read_variants(file: Path) -> dict[str, Settings]:
    """Read variants from a file: `{"name": {"section.key": value, ...}, ...}`, the most valuable first.

    Raises:
        InputError: The file cannot be read, or is something else.
    """
    try:
        variants = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}): give a file of variants.") from error
    if not isinstance(variants, Mapping) or not variants:
        raise InputError(f'{file} has no variants: it must map names to settings, {{"name": {{"optim.lr_d": 1e-3}}}}.')
    for name, settings in variants.items():
        if not isinstance(settings, Mapping):
            raise InputError(f"{file}: {name!r} is {settings!r}, but must map settings to values.")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise InputError(f"{file}: the name {name!r} must be of letters, digits, '.', '_' and '-' alone.")
    return {name: dict(settings) for name, settings in variants.items()}
