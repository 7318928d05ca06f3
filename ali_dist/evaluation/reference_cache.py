"""What depends on the data alone (a classifier, moments of its features, a mean image) is kept and found again.

Each result is one file, named by a hash of everything that decides it: what the samples are, the settings, and a
version that is raised when the computation changes. A file that is damaged, or of something else, counts as missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ali_dist.errors import InputError, StorageError
from ali_dist.storage.base import Store

VERSION = 3
"""Raised when a classifier or a reference is computed in another way."""
FOLDER = "evaluation-references"

Tensors = dict[str, Tensor]


class ReferenceCache:
    """Keeps tensors in the first of some folders that can be written, and finds them in any.

    Args:
        stores: Folders, the most wanted first; empty: nothing is kept.
    """

    def __init__(self, stores: Sequence[Store] = ()) -> None:
        self._stores = tuple(stores)

    def recall(self, kind: str, settings: Mapping[str, Any], compute: Callable[[], Tensors]) -> Tensors:
        """Find a result that was kept, or compute and keep it.

        Args:
            kind: What it is, as the file's name says.
            settings: Everything that decides it, JSON-able. A value that is empty or None, such as the identity of
                samples that nobody knows, means that it must not be kept.
            compute: Computes it.
        """
        if not self._stores or any(value in ("", None) for value in settings.values()):
            return compute()
        decided_by = json.dumps({"version": VERSION, "kind": kind, **settings}, sort_keys=True)
        key = f"{FOLDER}/{kind}-{hashlib.sha256(decided_by.encode()).hexdigest()[:16]}.safetensors"
        for store in self._stores:
            tensors = _read(store, key, decided_by)
            if tensors is not None:
                return tensors
        tensors = compute()
        self._keep(key, decided_by, tensors)
        return tensors

    def _keep(self, key: str, decided_by: str, tensors: Tensors) -> None:
        data = _pack(decided_by, tensors)
        for store in self._stores:
            try:
                store.put(key, data)
                return
            except (InputError, StorageError, OSError):  # a folder of somebody else, or a full disk: the next one
                continue


def _pack(decided_by: str, tensors: Tensors) -> bytes:
    return save_tensors(tensors, {"decided_by": decided_by, "sha256": _content_sha256(tensors)})


def _read(store: Store, key: str, decided_by: str) -> Tensors | None:
    """The tensors of a file; None if it is missing, damaged, or decided by something else."""
    try:
        if store.stat(key) is None:
            return None
        data = store.get(key)
        tensors = load_tensors(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (InputError, StorageError, OSError, SafetensorError, ValueError, KeyError):
        return None
    is_whole = metadata.get("decided_by") == decided_by and metadata.get("sha256") == _content_sha256(tensors)
    return tensors if is_whole else None


def _content_sha256(tensors: Tensors) -> str:
    content = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content.update(tensor.numpy().tobytes())
    return content.hexdigest()
