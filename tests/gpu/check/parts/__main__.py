"""The process of one part, which `tests.gpu.check` starts."""

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
from tests.bench.step import describe_conditions
from tests.gpu.check.task import FigureWriter, PartTask


def _die_with_parent(parent: int) -> None:
    """Wait until the parent has died, and kill this group: a parent that was killed cannot do so."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the hardware and the versions that the figures belong to."""
    machine = describe_conditions(device, "auto")
    del machine["precision"]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine |= {"gpu_memory": properties.total_memory, "multiprocessors": properties.multi_processor_count}
        machine["driver"] = _first_line_of("nvidia-smi", _DRIVER_QUERY)
        if torch.distributed.is_available() and torch.distributed.is_nccl_available():
            machine["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return machine | {"revision": _first_line_of("git", ["rev-parse", "--short", "HEAD"])}


_DRIVER_QUERY = ["--query-gpu=driver_version", "--format=csv,noheader"]


def _first_line_of(program: str, arguments: list[str]) -> str | None:
    """Run a program; returns the first line that it prints, or None where it cannot be run."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.splitlines()), None)


def main() -> int:
    """Run the part that the arguments name; returns exit code 1 where it could not be done at all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part")
    parser.add_argument("--device", required=True)
    parser.add_argument("--deadline", type=float, required=True)
    for name in ("figures", "work", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    threading.Thread(target=_die_with_parent, args=(os.getppid(),), daemon=True).start()
    figures = FigureWriter(options.figures, options.deadline)
    try:
        device = choose_device(options.device, 0)
        if device.type == "cpu":
            # On cores that other processes use, two threads wait for each other a hundred times as long.
            torch.set_num_threads(1)
        figures.add("machine", **_describe_machine(device))
        part = importlib.import_module(f"tests.gpu.check.parts.{options.part}")
        part.run_part(PartTask(device, options.out, options.work, figures))
    except Exception as error:
        figures.add_failure(options.part, error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
