"""Arrays out of CIFAR's Python files, without letting pickle build anything of its own.

A pickle can name any function and call it. Here the few names that such a file needs stand for the small
classes below, which only hold what they are given; any other name is refused. Reading runs no code but this module's.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray


class _Dtype:
    """Stands for numpy.dtype, and holds its code, such as u1."""

    def __init__(self, code: object = b"", *flags: object) -> None:
        self.code = code.decode("latin-1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Do nothing: byte order and the like mean nothing for uint8."""


class _Array:
    """Stands for numpy.ndarray, and holds a uint8 array in C order."""

    value: NDArray[np.uint8]

    def __init__(self, *ignored: object) -> None:
        self.value = np.empty(0, dtype=np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        is_uint8 = isinstance(dtype, _Dtype) and dtype.code in ("u1", "|u1") and isinstance(content, bytes)
        if fortran or not is_uint8:
            raise ValueError("its array is not of uint8 numbers in C order")
        self.value = np.frombuffer(content, dtype=np.uint8).reshape(shape)


_STAND_INS: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _STAND_INS[module, name]
        except KeyError as error:
            raise ValueError(f"it asks for {module}.{name}, which no file of CIFAR does") from error


def read_pickled(data: bytes) -> dict[str, Any]:
    """Read a dictionary of uint8 arrays, lists, numbers and byte strings, as Python 2 pickled it.

    Raises:
        ValueError: The data is anything else; the message says why.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle can end in nearly any exception
        raise ValueError(f"it is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a dictionary")
    names = (key.decode("latin-1") if isinstance(key, bytes) else str(key) for key in content)
    values = (value.value if isinstance(value, _Array) else value for value in content.values())
    return dict(zip(names, values, strict=True))
