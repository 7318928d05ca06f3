"""What a checkpoint holds as tensors: Adam's state by name, and whether all is there, of the right shape and finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ADAM_ENTRIES = ("exp_avg", "exp_avg_sq", "step")


class UnusableCheckpoint(Exception):  # noqa: N818
    """A checkpoint that is not complete, or does not hold what it must; the message says why."""


def check_shapes(file: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit those that they are to replace.

    Args:
        file: What the message calls them.
        expected: The tensors to be replaced, by name.
        found: Those of a checkpoint.

    Raises:
        UnusableCheckpoint: One is missing or has another shape; the message names the first.
    """
    for name, tensor in expected.items():
        if name not in found:
            raise UnusableCheckpoint(f"{file}.safetensors has no {name}")
        if found[name].shape != tensor.shape:
            shapes = f"{list(found[name].shape)}, but must be {list(tensor.shape)}"
            raise UnusableCheckpoint(f"{name} in {file}.safetensors is {shapes}")


def find_non_finite(files: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """The name of the first tensor that has a NaN or an infinity; None if all are finite. Waits for the device.

    Args:
        files: Tensors by file, then by name.
    """
    tensors = {f"{name} ({file})": t for file, part in files.items() for name, t in part.items()}
    floating = {name: t for name, t in tensors.items() if t.is_floating_point() and t.numel()}
    by_device: dict[torch.device, list[str]] = {}
    for name, t in floating.items():
        by_device.setdefault(t.device, []).append(name)
    for names in by_device.values():  # the device is waited for once, not once for each tensor
        is_finite = torch.stack([floating[name].isfinite().all() for name in names])
        if not bool(is_finite.all()):
            return names[int(is_finite.int().argmin())]
    return None


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adam's state by "<parameter name>.<entry>", such as "encoder.stack.layers.0.0.weight.exp_avg".

    Args:
        optimizer: The optimizer of the parameters.
        parameters: Parameters by name.
    """
    tensors = {}
    for name, parameter in parameters.items():
        for entry, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{entry}"] = value
    return tensors


def load_optimizer(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Give the optimizer the state that `optimizer_tensors` has read off another one; arguments as there."""
    entries = {key.rpartition(".")[2] for key in tensors}
    for name, parameter in parameters.items():
        state = {entry: tensors[f"{name}.{entry}"] for entry in entries if f"{name}.{entry}" in tensors}
        optimizer.state[parameter] = {entry: _laid_out_like(parameter, value) for entry, value in state.items()}


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of an entry on the parameter's device, and in its layout: fused Adam reads both as they lie in memory."""
    if value.shape != parameter.shape:
        return value.to(parameter.device)  # the count of updates
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def check_optimizer(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a state of Adam that lacks an entry of a parameter, or has one of another shape.

    Args:
        parameters: What Adam updates, by name.
        tensors: As `optimizer_tensors` gives them.

    Raises:
        UnusableCheckpoint: It does; the message names the first.
    """
    scalar = torch.zeros(())
    for name, parameter in parameters.items():
        expected = {f"{name}.{entry}": scalar if entry == "step" else parameter for entry in ADAM_ENTRIES}
        check_shapes("optimizer", expected, tensors)
