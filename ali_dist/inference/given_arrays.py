"""Arrays and tensors that a Python program gives: what all of them have to be, whatever they are for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ali_dist.errors import InputError


def check_plain(given: NDArray[Any] | Tensor, name: str) -> None:
    """Refuse arrays whose numbers are not all there, or not numbers of one part.

    Args:
        given: An array or a tensor of any shape and type.
        name: What the error calls it.

    Raises:
        InputError: The tensor is sparse, quantized, complex or without data (meta), or entries of the array are
            masked, so that what is behind the mask would be taken silently.
    """
    if isinstance(given, Tensor):
        if given.is_meta:
            raise InputError(f"{name} is a tensor on the device 'meta', which holds no numbers: give one that does.")
        if given.layout is not torch.strided or given.is_quantized:
            raise InputError(f"{name} is a sparse or quantized tensor: make it dense (to_dense() or dequantize()).")
    elif np.ma.is_masked(given):
        raise InputError(f"{name} has masked entries: fill them first (array.filled(value)).")
    if given.dtype in (torch.complex32, torch.complex64, torch.complex128) or (
        isinstance(given, np.ndarray) and given.dtype.kind == "c"
    ):
        raise InputError(f"{name} holds complex numbers, but must hold real ones: give the part that is meant.")
