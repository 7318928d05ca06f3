"""Conditions that a Python program gives: classes by name or number, attributes by name, or vectors.

What one class or one mapping says holds for all samples; a sequence says it for each.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.inference.conditions import find_attribute, find_class
from ali_dist.inference.given_arrays import check_plain
from ali_dist.inference.load import LoadedRun
from ali_dist.model.data_space import condition_vectors

Condition = int | str | Mapping[str, float] | Sequence[int | str | Mapping[str, float]] | NDArray[Any] | Tensor
"""A class (name or number), attributes (`{"Smiling": 1}`, all others 0), one of these for each sample, or vectors
numbers [A] or [N, A]."""


def make_conditions(run: LoadedRun, condition: Condition | None, count: int) -> Tensor | None:
    """Turn what a program gives into conditions.

    Args:
        run: The run of the model.
        condition: See `Condition`; None: not given.
        count: Samples N that it is for.

    Returns:
        float32 [N, A]; None for an unconditional model.

    Raises:
        InputError: It is missing or needless, of another number of samples, or names a class or an attribute that
            the model does not have.
    """
    kind = run.config.model.condition
    if kind == "none":
        if condition is None:
            return None
        raise InputError(f"A condition was given, but run {run.name!r} is not conditional: leave it out.")
    if condition is None:
        raise InputError(f"Run {run.name!r} is conditional on {kind}: give condition={_example(run)}.")
    c = _vectors(run, condition)
    if len(c) == 1 and _is_for_all(condition):
        c = c.expand(count, -1)
    if len(c) != count:
        raise InputError(
            f"condition holds {len(c)} entries for {count} samples: give one for each sample, or one class or mapping "
            "for all."
        )
    return c


def class_turns(run: LoadedRun, count: int) -> Tensor:
    """Conditions [count, K] of a class-conditional model: one class after another, over and over."""
    return condition_vectors(torch.arange(count) % run.model.condition_size, run.model.condition_size)


def _example(run: LoadedRun) -> str:
    if run.config.model.condition == "classes":
        return f"{run.spec.classes[0]!r} (a name or a number of a class)"
    return f"{{{run.spec.attributes[0]!r}: 1}} (others are 0)"


def _is_for_all(condition: Condition) -> bool:
    if isinstance(condition, np.ndarray | Tensor):
        return condition.ndim < 2
    return isinstance(condition, str | numbers.Integral | Mapping)


def _vectors(run: LoadedRun, condition: Condition) -> Tensor:
    """The vectors float32 [M, A] that a condition names: one, or one for each sample."""
    size = run.model.condition_size
    if isinstance(condition, np.ndarray | Tensor):
        check_plain(condition, "condition")
        if isinstance(condition, Tensor):
            condition = condition.detach().cpu()
            array = (condition.float() if condition.is_floating_point() else condition).numpy()
        else:
            array = condition
        # Whole numbers are classes where they stand in a row, and else the entries of vectors, as in a table of labels.
        is_table = array.ndim > (1 if run.config.model.condition == "classes" else 0)
        if array.dtype.kind == "f" or (array.dtype.kind in "iub" and is_table):
            with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
                return _check_vectors(run, torch.from_numpy(np.atleast_2d(array).astype(np.float32)))
        condition = list(np.atleast_1d(array))
    is_one = isinstance(condition, str | Mapping) or not isinstance(condition, Sequence)
    entries: Sequence[object] = [condition] if is_one else list(cast("Sequence[object]", condition))
    vectors = [_entry_vector(run, place, entry) for place, entry in enumerate(entries)]
    return torch.stack(vectors) if vectors else torch.empty(0, size)


def _check_vectors(run: LoadedRun, c: Tensor) -> Tensor:
    size = run.model.condition_size
    if c.dim() != 2 or c.shape[1] != size or not bool(c.isfinite().all()):
        raise InputError(
            f"condition is an array of shape {list(c.shape)}, but conditions of run {run.name!r} are finite numbers "
            f"[{size}] or [N, {size}]: give these, or {_example(run)}."
        )
    return c


def _entry_vector(run: LoadedRun, place: int, entry: object) -> Tensor:
    """The condition [A] that one entry names."""
    size = run.model.condition_size
    is_number = isinstance(entry, numbers.Integral) and not isinstance(entry, bool)
    if run.config.model.condition == "classes" and (is_number or isinstance(entry, str)):
        return torch.eye(size)[find_class(run, str(entry))]
    if run.config.model.condition == "attributes" and isinstance(entry, Mapping):
        c = torch.zeros(size)
        for name, value in entry.items():
            c[find_attribute(run.spec.attributes, str(name))] = _attribute_value(str(name), value)
        return c
    raise InputError(
        f"Entry {place} of condition is {entry!r}, but run {run.name!r} is conditional on "
        f"{run.config.model.condition}: give {_example(run)}."
    )


def _attribute_value(name: str, value: object) -> float:
    if not isinstance(value, numbers.Real) or value not in (0, 1):
        raise InputError(f"condition has {name!r}: {value!r}, but an attribute is 1 (has it) or 0 (lacks it).")
    return float(value)
