"""What a page asks for, as it comes over the wire: read from JSON, and checked before anything is computed."""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.exploration.explorer import Point
from ali_dist.inference.trained_model import TrainedModel

LEAST_STEPS, MOST_STEPS = 3, 24
"""Pictures of a walk."""


def parse_json(body: bytes) -> Mapping[str, Any]:
    """Read a JSON object; an empty body is an empty one.

    Raises:
        InputError: It is something else.
    """
    try:
        content = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InputError("The request is no JSON: ask by the page, or as it does.") from error
    if not isinstance(content, dict):
        raise InputError(f"The request is a {type(content).__name__}, but must be a JSON object.")
    return content


def parse_point(model: TrainedModel, content: object, name: str = "The request") -> Point:
    """Read a point: `z`, and for a conditional model `c`.

    Args:
        model: What it is for.
        content: A mapping with lists of numbers.
        name: What errors call it.

    Raises:
        InputError: A part is missing, or has other than finite numbers, or other than as many as the model takes.
    """
    if not isinstance(content, Mapping):
        raise InputError(f"{name} is no point, but must be an object with z.")
    return Point(_numbers(content.get("z"), model.latent_size, "z", name), parse_condition(model, content, name))


def parse_condition(model: TrainedModel, content: Mapping[str, Any], name: str = "The request") -> Tensor | None:
    """Read the condition `c` float32 [A]; None for an unconditional model.

    Raises:
        InputError: As of `parse_point`.
    """
    size = model.run.model.condition_size
    return _numbers(content.get("c"), size, "c", name) if size else None


def parse_steps(content: Mapping[str, Any]) -> int:
    """Read `steps`, the pictures of a walk.

    Raises:
        InputError: It is no whole number within the bounds.
    """
    steps = content.get("steps")
    if type(steps) is not int or not LEAST_STEPS <= steps <= MOST_STEPS:
        raise InputError(f"steps is {_short(steps)}, but must be a whole number from {LEAST_STEPS} to {MOST_STEPS}.")
    return steps


def parse_place(content: Mapping[str, Any]) -> int | None:
    """Read `place`, the number of an image; None where none is named.

    Raises:
        InputError: It is no whole number.
    """
    place = content.get("place")
    if place is None or type(place) is int:
        return place
    raise InputError(f"place is {_short(place)}, but must be the number of an image.")


def _numbers(given: object, size: int, key: str, name: str) -> Tensor:
    """A list of `size` finite numbers as float32 [size]."""
    if not isinstance(given, list) or len(given) != size:
        kind = f"{len(given)} numbers" if isinstance(given, list) else _short(given)
        raise InputError(f"{name} has {kind} as {key}, but {size} numbers are needed.")
    if all(isinstance(number, numbers.Real) and not isinstance(number, bool) for number in given):
        try:
            values = torch.tensor([float(number) for number in given], dtype=torch.float32)
        except OverflowError:
            values = torch.tensor([torch.inf])
        if bool(values.isfinite().all()):
            return values
    raise InputError(f"{name} has something else than finite numbers in {key}: give these.")


def _short(value: object) -> str:
    return repr(value)[:40]
