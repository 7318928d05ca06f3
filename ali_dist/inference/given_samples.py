"""Samples that a Python program gives: NumPy arrays, PIL images, tensors, or lists of them, checked one by one.

NumPy arrays have their channels last, as Pillow and matplotlib do, and tensors have them first, as torch does. Both
hold bytes (uint8, 0 to 255) or floats (0 to 1).
"""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ali_dist.data.sources.images import CenterCrop
from ali_dist.errors import InputError
from ali_dist.inference.given_arrays import check_plain
from ali_dist.inference.load import LoadedRun

Samples = NDArray[Any] | Tensor | Image.Image | Sequence[NDArray[Any] | Tensor | Image.Image]
"""Images: [N, H, W, C], [H, W, C], or without C where there is one channel; tensors [N, C, H, W], [C, H, W]; PIL
images. Points: [N, D], [D]. Or a sequence of single ones."""
_ROUNDING = 1e-3  # by which floats may leave [0, 1], and are brought back


def stored_samples(run: LoadedRun, given: Samples) -> Tensor:
    """Check samples and bring them into one tensor.

    PIL images become what `prepare` would make of their files: upright, opaque, in the data's channels, and their
    middle square at the data's side. Arrays of another size than the data's are resized by the model, as the commands
    do, and a warning says so.

    Args:
        run: The run of the model that they are for.
        given: See `Samples`.

    Returns:
        Images uint8 [N, C, h, w], or float32 in [0, 1]; or points float32 [N, D]; on the CPU.

    Raises:
        InputError: A sample has another shape, number of channels or type, or a value out of range; it is named by
            its place.
    """
    if isinstance(given, np.ndarray | Tensor):
        x = _checked_array(run, given, "The array")
    elif isinstance(given, Image.Image):
        x = _picture_sample(run, given, "The picture")[None]
    elif isinstance(given, Sequence) and not isinstance(given, str | bytes):
        x = _joined_samples(run, given)
    else:
        raise InputError(
            f"Samples are given as {type(given).__name__}, but must be a NumPy array, a tensor, a PIL image, or a list "
            "of them."
        )
    _warn_of_resize(run, x)
    return x


def _joined_samples(run: LoadedRun, given: Sequence[object]) -> Tensor:
    samples = []
    for place, sample in enumerate(given):
        name = f"Sample {place} of the list"
        if isinstance(sample, Image.Image):
            samples.append(_picture_sample(run, sample, name))
        elif isinstance(sample, np.ndarray | Tensor):
            batch = _checked_array(run, sample, name)
            if len(batch) != 1:
                raise InputError(
                    f"{name} is an array of {len(batch)} samples, but a list holds single ones: give the arrays joined "
                    "(np.concatenate)."
                )
            samples.append(batch[0])
        else:
            raise InputError(f"{name} is of type {type(sample).__name__}, not an array, a tensor or a PIL image.")
    if not samples:
        return torch.empty(0, *run.spec.shape)
    if len({(sample.dtype, sample.shape) for sample in samples}) == 1:
        return torch.stack(samples)
    for sample in samples:
        _warn_of_resize(run, sample[None])
    return torch.cat([run.space.unit_from_stored(sample[None]) for sample in samples])


def _warn_of_resize(run: LoadedRun, x: Tensor) -> None:
    """Warn where images have neither the data's size nor that of the networks."""
    if not run.spec.is_images or x.shape[1:] == run.spec.shape:
        return
    space = dataclasses.replace(run.space, stored_shape=tuple(x.shape[1:]))
    if sentence := space.describe_resize():
        warnings.warn(f"{sentence} The data of run {run.name!r} are {_size(run)}.", stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """The `stacklevel` that names the user's line, from whichever method the samples came."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "ali_dist":
        frame, level = frame.f_back, level + 1
    return level


def _size(run: LoadedRun) -> str:
    return "x".join(map(str, run.spec.shape[1:]))


def _picture_sample(run: LoadedRun, picture: Image.Image, name: str) -> Tensor:
    """A PIL image as `prepare` would store it, uint8 [C, H, W]."""
    channels, height, width = run.spec.shape if run.spec.is_images else (0, 0, 0)
    if channels not in (1, 3):
        raise InputError(f"{name} is a PIL image, but run {run.name!r} takes {_expected(run)}: give an array of these.")
    if 0 in picture.size:
        raise InputError(f"{name} has {picture.height}x{picture.width} pixels, which is nothing: give another one.")
    if height != width and picture.size != (width, height):
        raise InputError(
            f"{name} has {picture.height}x{picture.width} pixels, but the data of run {run.name!r} are {_size(run)}, "
            "which is no square that it could be cropped to: give pictures of that size."
        )
    mode = "L" if channels == 1 else "RGB"
    try:
        if picture.size == (width, height) and picture.mode == mode and not picture.getexif():
            return torch.from_numpy(np.array(picture)).view(height, width, channels).permute(2, 0, 1).contiguous()
        if height != width:
            raise ValueError(f"its mode is {picture.mode}, but only {mode} is taken as it is: convert it")
        stored, _ = CenterCrop(height, grey=channels == 1)(picture.copy())  # a copy: decoding changes an opened file
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{name} cannot be used ({str(error).rstrip('.')}): give another one.") from error
    return torch.from_numpy(np.array(stored))  # a copy: torch takes no read-only memory


def _checked_array(run: LoadedRun, given: NDArray[Any] | Tensor, name: str) -> Tensor:
    """An array or tensor as [N, C, H, W] or [N, D], uint8 or float32, on the CPU."""
    check_plain(given, name)
    if isinstance(given, Tensor):
        x, shape = given.detach().cpu(), tuple(given.shape)
    else:
        if given.dtype.kind not in "fu" or given.dtype.kind == "u" and given.dtype != np.uint8:
            raise _type_error(name, str(given.dtype), run)
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
            array = given.astype(np.float32) if given.dtype.kind == "f" else given
        x, shape = torch.from_numpy(np.array(array, order="C")), given.shape  # a copy: torch takes no read-only memory
    is_bytes = x.dtype == torch.uint8
    if not (x.is_floating_point() or (is_bytes and run.spec.is_images)):
        raise _type_error(name, str(x.dtype).removeprefix("torch."), run)
    batch = _as_batch(run, x, channels_last=not isinstance(given, Tensor))
    if batch is None:
        raise _shape_error(run, name, shape, is_tensor=isinstance(given, Tensor))
    return batch if is_bytes else _checked_floats(run, batch.float(), name)


def _as_batch(run: LoadedRun, x: Tensor, *, channels_last: bool) -> Tensor | None:
    """`x` as a batch with channels first; None if its shape is none of those that are taken."""
    if not run.spec.is_images:
        points = x[None] if x.dim() == 1 else x
        return points if points.dim() == 2 and points.shape[1:] == run.spec.shape else None
    channels = run.spec.shape[0]
    if channels == 1:
        if x.dim() == 2 or (x.dim() == 3 and channels_last and x.shape[2] == 1):
            x = x.reshape(1, *x.shape[:2])
        if x.dim() == 3:  # [N, H, W]; a tensor [1, H, W] is the same
            is_color = channels_last and x.shape[2] in (3, 4) and x.shape[1:] != run.spec.shape[1:]
            return x[:, None] if min(x.shape[1:]) > 0 and not is_color else None
    if x.dim() == 3:
        x = x[None]
    if x.dim() != 4:
        return None
    x = x.permute(0, 3, 1, 2) if channels_last else x
    return x.contiguous() if x.shape[1] == channels and min(x.shape[2:]) > 0 else None


def _checked_floats(run: LoadedRun, x: Tensor, name: str) -> Tensor:
    bad = ~x.isfinite()
    if run.spec.is_images:
        bad |= (x < -_ROUNDING) | (x > 1 + _ROUNDING)
    rows = bad.flatten(1).any(dim=1).nonzero().flatten().tolist()
    if rows:
        value = float(x[rows[0]][bad[rows[0]]][0])
        where = name if len(x) == 1 else f"{name}, sample {rows[0]},"
        advice = "floats must be from 0 to 1 (give 0 to 255 as uint8, or divided by 255)"
        raise InputError(f"{where} has the value {value:g}, but {advice if run.spec.is_images else 'must be finite'}.")
    return x.clamp(0, 1) if run.spec.is_images else x


def _expected(run: LoadedRun) -> str:
    if not run.spec.is_images:
        return f"points of {run.spec.shape[0]} coordinates, [N, {run.spec.shape[0]}]"
    channels = run.spec.shape[0]
    return f"images of {channels} channel{'s' if channels > 1 else ''}, {_size(run)}"


def _type_error(name: str, dtype: str, run: LoadedRun) -> InputError:
    expected = "uint8 (0 to 255) or floats (0 to 1)" if run.spec.is_images else "floats"
    return InputError(f"{name} is of {dtype}, but must be of {expected}: convert it.")


def _shape_error(run: LoadedRun, name: str, shape: tuple[int, ...], *, is_tensor: bool) -> InputError:
    message = f"{name} has shape {list(shape)}, but run {run.name!r} takes {_expected(run)}"
    if not run.spec.is_images:
        return InputError(f"{message}: give one of these shapes.")
    channels = run.spec.shape[0]
    layout, other = ("[N, C, H, W]", "[N, H, W, C]") if is_tensor else ("[N, H, W, C]", "[N, C, H, W]")
    swapped = len(shape) in (3, 4) and shape[-1 if is_tensor else -3] == channels
    hint = f", and yours looks like {other}" if swapped else ""
    kind = "tensors" if is_tensor else "NumPy arrays"
    return InputError(f"{message}: {kind} are {layout} with C = {channels}{hint}.")
