"""The step bench in order of worth: the paper's networks, each exact way, beside the usual style."""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.bench import step as bench
from tests.gpu.check.task import Task

TINY: dict[str, Any] = {"model.width": 0.1, "model.latent_size": 4}
EAGER_SECONDS, COMPILED_SECONDS = 15.0, 60.0  # a first guess; later ones are what such cells took
COUNTED = 4  # images of an update whose operations are counted; they are proportional to it


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement; `batch` None is the preset's own."""

    preset: str
    batch: int | None = None
    precision: str = "bf16"
    compile: bool = False
    steps: tuple[str, ...] | None = None

    def __str__(self) -> str:
        size = "" if self.batch is None else f" batch {self.batch}"
        steps = "" if self.steps is None else f" ({', '.join(self.steps)})"
        return f"{self.preset}{size} {self.precision} {'compiled' if self.compile else 'eager'}{steps}"


def cells(tiny: bool) -> list[Cell]:
    """What to measure, in order of worth.

    Compiling takes a step about a minute, so compiled cells begin with the way that a run would take.
    """
    if tiny:
        return [Cell("cifar10", 2, "fp32"), Cell("digits", 4, "fp32")]  # bf16 takes many CPUs a hundred times as long
    eager = [
        Cell(preset, batch, precision)
        for preset, batch in (("cifar10", 100), ("cifar10", 1024), ("svhn", 100), ("celeba", 100), ("digits", 64))
        for precision in ("bf16", "fp32")
    ]
    taken = {"cifar10": "scaled", "svhn": "coupled", "celeba": "coupled", "digits": "penalised"}
    compiled = [
        Cell("cifar10", 100, "bf16", True, (taken["cifar10"],)),
        Cell("cifar10", 1024, "bf16", True, (taken["cifar10"],)),
        *(Cell(name, None, "bf16", True, (taken[name],)) for name in ("svhn", "celeba", "digits")),
        Cell("cifar10", 100, "fp32", True, (taken["cifar10"],)),
        Cell("cifar10", 100, "bf16", True, ("coupled", "alternating")),
    ]
    return eager + compiled


class _Operations(TorchDispatchMode):
    """Counts as `FlopCounterMode` does, which raises where gradients are differentiated (torch 2.11 to 2.14)."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        return out


def operations(preset: str, device: torch.device, layer: dict[str, Any]) -> dict[str, float]:
    """Floating-point operations of an update for each image, by step: matrix products and convolutions alone."""
    settings = bench.Settings(preset=preset, batch=COUNTED, precision="fp32")
    found = {}
    for contestant in bench.make_contestants(settings, device, **layer):
        with _Operations() as counted:
            contestant.update()
        found[contestant.name] = counted.total / COUNTED
    return found


def run(task: Task) -> None:
    """Measure cell after cell; one that fails is said, and the next ones are measured."""
    guesses = {False: EAGER_SECONDS, True: COMPILED_SECONDS}
    if task.tiny:
        guesses[False] = 3.0
    layer = TINY if task.tiny else {}
    counted: dict[str, dict[str, float]] = {}
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else the rest would run eager, under the wrong name
    for cell in cells(task.tiny):
        if not task.figures.fits(str(cell), guesses[cell.compile]):
            continue
        began = time.monotonic()
        try:
            if cell.preset not in counted:
                counted[cell.preset] = operations(cell.preset, task.device, layer)
            result = _measure(cell, task, layer)
        except Exception as error:
            task.figures.fail(str(cell), error)
        else:
            for row in result["rows"]:
                row["flops_per_image"] = counted[cell.preset][row["step"]]
            took = time.monotonic() - began
            task.figures.add("cell", cell=str(cell), took=round(took, 1), **_compilation(cell), **result)
            guesses[cell.compile] = max(took, guesses[cell.compile] / 2)
        _clean(task.device)


def _measure(cell: Cell, task: Task, layer: dict[str, Any]) -> dict[str, Any]:
    settings = bench.Settings(
        preset=cell.preset,
        batch=cell.batch,
        rounds=2 if task.tiny else 3,
        updates=1 if task.tiny else 10,
        device=task.device.type,
        precision=cell.precision,
        compile=cell.compile,
        steps=cell.steps,
    )
    return bench.run(settings, lambda line: print(f"{cell}: {line}", file=sys.stderr, flush=True), **layer)


def _compilation(cell: Cell) -> dict[str, int]:
    """What compiling has made of the cell's networks; a break is a place where it fell back on plain Python."""
    if not cell.compile:
        return {}
    counters = torch._dynamo.utils.counters
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}


def _clean(device: torch.device) -> None:
    """Give back what the cell held, so that the next one finds an empty device and no compiled code of others."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
