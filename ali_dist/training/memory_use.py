"""How much memory this process uses, on the host and on its GPU."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

_GIB = float(2**30)
_STATM = Path("/proc/self/statm")


def measure_memory(device: torch.device) -> dict[str, float]:
    """Memory of this process, in GiB.

    Args:
        device: Where it computes.

    Returns:
        `host_gib`: its resident memory; where the system does not tell, the most it has had. On a GPU also `cuda_gib`
        and `cuda_peak_gib`: what tensors take there, and the most they have taken.
    """
    memory = {"host_gib": _resident_bytes() / _GIB}
    if device.type == "cuda":
        memory["cuda_gib"] = torch.cuda.memory_allocated(device) / _GIB
        memory["cuda_peak_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
    return memory


def _resident_bytes() -> int:
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")
