"""The child process of one part; `tests.gpu.check` starts it."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from ali_dist.distributed import choose_device
from tests.bench.step import conditions
from tests.gpu.check.task import Figures, Task


def _end_with_parent(parent: int) -> None:
    """A parent that was killed cannot end us, and would leave the device occupied."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _machine(device: torch.device) -> dict[str, Any]:
    """Hardware and versions that the figures belong to."""
    found = conditions(device, "auto")
    del found["precision"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu_memory": properties.total_memory, "multiprocessors": properties.multi_processor_count}
        found["driver"] = _said("nvidia-smi", _DRIVER)
        if torch.distributed.is_available() and torch.distributed.is_nccl_available():
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found | {"revision": _said("git", ["rev-parse", "--short", "HEAD"])}


_DRIVER = ["--query-gpu=driver_version", "--format=csv,noheader"]


def _said(program: str, arguments: list[str]) -> str | None:
    """The first line that a program prints; None where it cannot be run."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def main() -> int:
    """Run the part named in the arguments; exit code 1 where it could not be done at all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--device", required=True)
    parser.add_argument("--deadline", type=float, required=True)
    for name in ("lines", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    figures = Figures(options.lines, options.deadline)
    try:
        device = choose_device(options.device, 0)
        if device.type == "cpu":
            torch.set_num_threads(1)  # two, on cores that others use, wait for each other a hundred times as long
        figures.add("machine", **_machine(device))
        part = importlib.import_module(f"tests.gpu.check.parts.{options.part}")
        part.run(Task(device, options.out, options.work, figures))
    except Exception as error:
        figures.fail(options.part, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
