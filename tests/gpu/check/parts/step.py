"""The step bench, most valuable cells first: the paper's networks with each exact rule, beside the usual style."""

from __future__ import annotations

import gc
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo

from tests.bench import step as bench
from tests.bench.operations import OperationCounter
from tests.gpu.check.task import PartTask

TINY_SETTINGS: dict[str, Any] = {"model.width": 0.1, "model.latent_size": 4}
EAGER_SECONDS = 15.0  # a first guess of what a cell takes; later guesses follow from what such cells took
COMPILED_SECONDS = 60.0
COUNTED_IMAGES = 4  # images of an update whose operations are counted, which are proportional to their number


@dataclass(frozen=True, slots=True)
class StepCell:
    """One measurement.

    Attributes:
        preset: Whose networks and objective.
        batch: Images of an update; None: as in the preset.
        precision: fp32 or bf16.
        compile: Whether the networks are compiled.
        steps: The steps to measure beside the usual one; None: all of them.
    """

    preset: str
    batch: int | None = None
    precision: str = "bf16"
    compile: bool = False
    steps: tuple[str, ...] | None = None

    def __str__(self) -> str:
        size = "" if self.batch is None else f" batch {self.batch}"
        steps = "" if self.steps is None else f" ({', '.join(self.steps)})"
        return f"{self.preset}{size} {self.precision} {'compiled' if self.compile else 'eager'}{steps}"


def plan_cells(tiny: bool) -> list[StepCell]:
    """List what to measure, the most valuable cells first.

    Compiling a step takes about a minute, so that compiled cells begin with the rule that a run would take.
    """
    if tiny:
        # On many CPUs, bf16 takes a hundred times as long.
        return [StepCell("cifar10", 2, "fp32"), StepCell("digits", 4, "fp32")]
    eager = [
        StepCell(preset, batch, precision)
        for preset, batch in (("cifar10", 100), ("cifar10", 1024), ("svhn", 100), ("celeba", 100), ("digits", 64))
        for precision in ("bf16", "fp32")
    ]
    rules = {"cifar10": "scaled", "svhn": "coupled", "celeba": "coupled", "digits": "penalised"}
    compiled = [
        StepCell("cifar10", 100, "bf16", True, (rules["cifar10"],)),
        StepCell("cifar10", 1024, "bf16", True, (rules["cifar10"],)),
        *(StepCell(name, None, "bf16", True, (rules[name],)) for name in ("svhn", "celeba", "digits")),
        StepCell("cifar10", 100, "fp32", True, (rules["cifar10"],)),
        StepCell("cifar10", 100, "bf16", True, ("coupled", "alternating")),
    ]
    return eager + compiled


def count_operations(preset: str, device: torch.device, layer: dict[str, Any]) -> dict[str, float]:
    """Count the floating-point operations of an update for each image, by step: matrix products and convolutions."""
    settings = bench.Settings(preset=preset, batch=COUNTED_IMAGES, precision="fp32")
    operations = {}
    for contestant in bench.make_contestants(settings, device, **layer):
        with OperationCounter() as counter:
            contestant.update()
        operations[contestant.name] = counter.total / COUNTED_IMAGES
    return operations


def run_part(task: PartTask) -> None:
    """Measure cell after cell; one that fails is reported, and the next is measured."""
    guesses = {False: EAGER_SECONDS, True: COMPILED_SECONDS}
    if task.is_tiny:
        guesses[False] = 3.0
    layer = TINY_SETTINGS if task.is_tiny else {}
    operations: dict[str, dict[str, float]] = {}
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # otherwise the rest would run eager, under a wrong name
    for cell in plan_cells(task.is_tiny):
        if not task.figures.has_time_for(str(cell), guesses[cell.compile]):
            continue
        began = time.monotonic()
        try:
            if cell.preset not in operations:
                operations[cell.preset] = count_operations(cell.preset, task.device, layer)
            result = _measure_cell(cell, task, layer)
        except Exception as error:
            task.figures.add_failure(str(cell), error)
        else:
            for row in result["rows"]:
                row["flops_per_image"] = operations[cell.preset][row["step"]]
            took = time.monotonic() - began
            task.figures.add("cell", cell=str(cell), took=round(took, 1), **_count_graphs(cell), **result)
            guesses[cell.compile] = max(took, guesses[cell.compile] / 2)
        _clear_device(task.device)


def _measure_cell(cell: StepCell, task: PartTask, layer: dict[str, Any]) -> dict[str, Any]:
    settings = bench.Settings(
        preset=cell.preset,
        batch=cell.batch,
        rounds=2 if task.is_tiny else 3,
        updates=1 if task.is_tiny else 10,
        device=task.device.type,
        precision=cell.precision,
        compile=cell.compile,
        steps=cell.steps,
    )
    return bench.measure_steps(settings, lambda line: print(f"{cell}: {line}", file=sys.stderr, flush=True), **layer)


def _count_graphs(cell: StepCell) -> dict[str, int]:
    """Count the graphs of a compiled cell, and the breaks, at which compiled code falls back on plain Python."""
    if not cell.compile:
        return {}
    counters = torch._dynamo.utils.counters
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}


def _clear_device(device: torch.device) -> None:
    """Free what the cell held, so that the next one finds an empty device and no compiled code of others."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
