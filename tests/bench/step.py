"""How fast our update is beside the usual public one: `python -m tests.bench.step [--preset cifar10] [options]`.

Every update rule that is exact for the preset, and `usual` (see `reference_step`), start from the same weights and see
the same batch. They take turns; medians and ratios are over rounds. Only the update is measured, without data,
averages of weights and records.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.distributed import World, choose_device
from ali_dist.errors import InputError
from ali_dist.model.build import build_networks, find_architecture
from ali_dist.model.data_space import DataSpace, lay_out_for_device
from ali_dist.model.data_spec import DataSpec
from ali_dist.training.precision import Precision
from ali_dist.training.state import build_train_state
from ali_dist.training.step import TrainBatch, loss_weights_at
from tests.bench.contest import Contestant, summarize_turns, take_turns
from tests.bench.reference_step import STYLES, UsualStep, use_stock_layers
from tests.helpers.runs import index_without_shards

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# The shape of a stored sample, by preset.
SAMPLE_SHAPES = {
    "digits": (1, 8, 8),
    "cifar10": (3, 32, 32),
    "svhn": (3, 32, 32),
    "celeba": (3, 64, 64),
}
USUAL, USUAL_OUR_LAYERS = "usual", "usual, our layers"
REPLAYED = ", replayed"  # ends the name of a rule whose updates are replayed as a CUDA graph
RATIO = f"speed of a step over that of {USUAL!r} in the same round; median over rounds, smallest and largest round"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of the command; None stands for a default that depends on other options.

    `steps` names the steps to measure beside `usual`; None means all of them.
    """

    preset: str = "cifar10"
    batch: int | None = None
    rounds: int = 5
    updates: int | None = None
    threads: int | None = None
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    fused_usual: bool = False
    clock: str = "wall"
    steps: tuple[str, ...] | None = None


def config_for(settings: Settings, *layers: dict[str, Any]) -> Config:
    """Load the preset and change it as `settings` and then `layers` say."""
    changes: dict[str, Any] = {
        "scale.precision": settings.precision,
        "scale.compile": settings.compile,
        "model.output_bias_from_data": False,  # there are no data, and it does not change the speed
        "optim.eps_inside": False,  # as after its first 16,000 updates: no update can be replayed until then
    }
    if settings.batch is not None:
        changes |= {"data.global_batch_size": settings.batch, "run.images": settings.batch}
    return from_mapping(load_preset(settings.preset), changes, *layers)


def _has_penalty(config: Config) -> bool:
    return config.objective.r1 > 0 or config.objective.r2 > 0


def exact_steps_for(config: Config, spec: DataSpec, device: torch.device) -> list[str]:
    """List our steps: on a GPU first the fastest rule as a run takes it, replayed; then each rule, launched."""
    rules = rules_for(config, spec)
    is_replayed = device.type == "cuda" and not config.scale.compile and config.scale.precision != "fp16"
    return [rules[0] + REPLAYED, *rules] if is_replayed else rules


def rules_for(config: Config, spec: DataSpec) -> list[str]:
    """List the update rules that are exact for these networks and terms, fastest first; then the alternating one."""
    if _has_penalty(config):
        return ["penalised", "alternating"]
    if find_architecture(config, spec).couples_samples:
        return ["coupled", "alternating"]
    return [*(["scaled"] if config.scale.precision != "fp16" else []), "coupled", "alternating"]


def _make_inputs(config: Config, space: DataSpace, device: torch.device) -> TrainBatch:
    """Draw x [B, ...] in the model's range, z and epsilon [B, n_z]: the same numbers at every call."""
    generator = torch.Generator().manual_seed(0)
    batch_size = config.data.global_batch_size
    x = space.model_from_unit(torch.rand(batch_size, *space.model_shape, generator=generator))
    z, epsilon = torch.randn(2, batch_size, config.model.latent_size, generator=generator)
    return TrainBatch(x.to(device), z.to(device), epsilon.to(device))


def make_contestants(settings: Settings, device: torch.device, **layer: Any) -> list[Contestant]:
    """Build the usual styles with torch's maxout and dropout, the first with ours, and then our update rules.

    Args:
        settings: The options of the command.
        device: Where the contestants compute.
        layer: Settings of the config by dotted name.
    """
    precision = Precision(settings.precision, device)
    layer = {"scale.precision": precision.name, **layer}
    config = config_for(settings, layer)
    index = index_without_shards(SAMPLE_SHAPES[settings.preset])
    weights = loss_weights_at(config.objective, 0, 1.0)
    contestants = []
    peers = (*STYLES, USUAL_OUR_LAYERS)
    steps = settings.steps or (*peers, *exact_steps_for(config, index.spec, device))
    for name in (name for name in peers if name == USUAL or name in steps):
        ali, space = build_networks(config, index.spec, config.run.seed)
        inputs = _make_inputs(config, space, device)
        if name in STYLES:
            use_stock_layers(ali)
        usual = UsualStep(
            ali.to(device),
            config.objective.loss,
            config.optim,
            precision,
            style=name if name in STYLES else USUAL,
            compiled=settings.compile,
            has_penalty=_has_penalty(config),
            fused=settings.fused_usual,
        )
        contestants.append(Contestant(name, partial(usual, inputs, weights), ali, (usual.opt_d, usual.opt_g)))
    for name in (name for name in exact_steps_for(config, index.spec, device) if name in steps):
        rule = name.removesuffix(REPLAYED)
        state = build_train_state(config_for(settings, layer, {"objective.update": rule}), index, device, World())
        assert state.step.rule.name == rule
        update = state.step if name == rule else state.update
        own_inputs = inputs._replace(x=lay_out_for_device(inputs.x))  # as a run has them
        contestants.append(
            Contestant(
                name,
                partial(update, own_inputs, weights),
                state.ali,
                (state.optimizer,),
                has_own_pool=name != rule,
            )
        )
    return contestants


def measure_steps(settings: Settings, say: Say, **layer: Any) -> dict[str, Any]:
    """Measure as `settings` say; the result is JSON-able.

    Args:
        settings: The options of the command.
        say: Takes a line about progress.
        layer: Settings of the config by dotted name, for networks that are smaller than the preset's.

    Raises:
        InputError: Preset, device and precision do not go together.
    """
    device = choose_device(settings.device, 0)
    if settings.clock == "cpu" and device.type == "cuda":
        raise InputError("--clock cpu does not see what a GPU does: leave it out, or add --device cpu.")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    images = config_for(settings, layer).data.global_batch_size
    updates = settings.updates or (20 if device.type == "cuda" else 3)
    contestants = make_contestants(settings, device, **layer)
    times = take_turns(contestants, settings.rounds, updates, device, say, CLOCKS[settings.clock])
    return {
        "settings": {**dataclasses.asdict(settings), "batch": images, "updates": updates},
        "conditions": describe_conditions(device, Precision(settings.precision, device).name),
        "rows": summarize_turns(times, USUAL, images),
        "ratio_is": RATIO,
    }


def describe_conditions(device: torch.device, precision: str) -> dict[str, Any]:
    """Describe the hardware, the versions and the date that the figures belong to."""
    description = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device.type,
        "precision": precision,
        "cpu": _read_cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        description |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        # torch computes fp32 convolutions in TF32 where it may, which decides what fp32 figures mean.
        description |= {"cudnn": torch.backends.cudnn.version(), "tf32_convolutions": torch.backends.cudnn.allow_tf32}
    return description


def _read_cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def format_table(result: dict[str, Any]) -> str:
    """Format the result as aligned plain text."""
    settings = result["settings"]
    conditions = result["conditions"]
    machine = f"{conditions['cpu']}, {conditions['threads']} threads on {conditions['cores']} cores"
    if conditions["device"] == "cuda":
        tf32 = "on" if conditions["tf32_convolutions"] else "off"
        versions = f"CUDA {conditions['cuda']}, cuDNN {conditions['cudnn']}, TF32 convolutions {tf32}"
        machine = f"{conditions['gpu']}, {versions}; {machine}"
    lines = [
        f"Preset {settings['preset']}, batch {settings['batch']}, {conditions['precision']}, "
        f"{'compiled' if settings['compile'] else 'eager'}; {conditions['date']}",
        f"{machine}; torch {conditions['torch']}, Python {conditions['python']}",
        f"{settings['rounds']} rounds, in each {settings['updates']} updates of every step in turn; "
        f"{'time on the clock' if settings['clock'] == 'wall' else 'CPU time of this process, all threads'}",
        "",
        f"{'step':<20}{'images/s':>10}{'ms/update':>11}{'ratio':>8}{'min':>7}{'max':>7}{'peak MB':>9}",
    ]
    for row in result["rows"]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        lines.append(
            f"{row['step']:<20}{row['images_per_second']:>10.1f}{row['seconds_per_update'] * 1e3:>11.2f}"
            f"{row['ratio']:>8.2f}{row['ratio_min']:>7.2f}{row['ratio_max']:>7.2f}{peak:>9}"
        )
    adam = "fused, as ours" if settings["fused_usual"] else "as torch chooses it; ours is fused"
    return "\n".join(
        [
            *lines,
            "",
            f"ratio: {RATIO}.",
            f"{USUAL}: D, then E and G, each with its own passes, torch's maxout and dropout; Adam {adam}.",
            *(f"{name}: {how}." for name, how in STYLES.items()),
        ]
    )


def _parse_positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.step", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(SAMPLE_SHAPES), default="cifar10")
    parser.add_argument("--batch", type=_parse_positive, help="images of an update (as in the preset)")
    parser.add_argument("--rounds", type=_parse_positive, default=5, help="turns of every step (5)")
    parser.add_argument("--updates", type=_parse_positive, help="timed updates in a turn (3; on CUDA 20)")
    parser.add_argument("--threads", type=_parse_positive, help="CPU threads (as torch chooses)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks of every step")
    parser.add_argument("--fused-usual", action="store_true", help=f"give {USUAL!r} a fused Adam, too")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU time, where other work disturbs; then with --threads 1",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write settings, conditions and all rounds there")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns exit code 0, or 2 for wrong input."""
    options = vars(_make_parser().parse_args(arguments))
    file: Path | None = options.pop("json")
    try:
        result = measure_steps(Settings(**options), lambda line: print(line, file=sys.stderr, flush=True))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(format_table(result))
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
