"""How fast our update is beside the usual public one: `python -m tests.bench.step [--preset cifar10] [options]`.

Every way of `ali_dist.training.step` that is exact for the preset, and `usual` (see `reference_step`), start from the
same weights and see the same batch. They take turns; medians and ratios are over rounds. Only the update is measured:
no data, no averaging of weights, no records.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
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
from ali_dist.data.shards.index import Index
from ali_dist.distributed import World, choose_device
from ali_dist.errors import InputError
from ali_dist.model.build import build_networks, find_architecture
from ali_dist.model.data_space import DataSpace
from ali_dist.training.precision import Precision
from ali_dist.training.state import build_train_state
from ali_dist.training.step import TrainBatch, loss_weights_at
from tests.bench.contest import Contestant, summarise, take_turns
from tests.bench.reference_step import UsualStep, with_stock_layers

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SAMPLE_SHAPES = {  # as stored, by preset
    "digits": (1, 8, 8),
    "cifar10": (3, 32, 32),
    "svhn": (3, 32, 32),
    "celeba": (3, 64, 64),
}
USUAL, USUAL_OUR_LAYERS = "usual", "usual, our layers"
RATIO = f"speed of a step over that of {USUAL!r} in the same round; median over rounds, smallest and largest round"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The command's options; None stands for a default that depends on others.

    `steps` names the steps to measure beside `usual`; None is every one.
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


def _config(settings: Settings, *layers: dict[str, Any]) -> Config:
    """The preset as `settings` change it; `layers` come last."""
    own: dict[str, Any] = {
        "scale.precision": settings.precision,
        "scale.compile": settings.compile,
        "model.output_bias_from_data": False,  # there are no data, and it changes no step's speed
    }
    if settings.batch is not None:
        own |= {"data.global_batch_size": settings.batch, "run.images": settings.batch}
    return from_mapping(load_preset(settings.preset), own, *layers)


def _penalised(config: Config) -> bool:
    return config.objective.r1 > 0 or config.objective.r2 > 0


def ways_for(config: Config) -> list[str]:
    """The ways that are exact for these networks and terms, the fastest first; then the alternating one."""
    if _penalised(config):
        return ["penalised", "alternating"]
    if find_architecture(config.model.architecture).couples_samples:
        return ["coupled", "alternating"]
    return [*(["scaled"] if config.scale.precision != "fp16" else []), "coupled", "alternating"]


def _stand_in_index(shape: tuple[int, ...]) -> Index:
    """An index without shards: of their data, networks need the shape and mean only."""
    mean, per_channel = (0.5,) * math.prod(shape), (0.5,) * shape[0]
    return Index(
        encoding="raw", dtype="uint8", shape=shape, shards=(), mean=per_channel, std=per_channel, pixel_mean=mean
    )


def _inputs(config: Config, space: DataSpace, device: torch.device) -> TrainBatch:
    """x [B, ...] in the model's range, z and epsilon [B, n_z]; always the same."""
    generator = torch.Generator().manual_seed(0)
    size, latent = config.data.global_batch_size, config.model.latent_size
    x = space.model_from_unit(torch.rand(size, *space.model_shape, generator=generator))
    z, epsilon = torch.randn(2, size, latent, generator=generator)
    return TrainBatch(x.to(device), z.to(device), epsilon.to(device))


def make_contestants(settings: Settings, device: torch.device, **layer: Any) -> list[Contestant]:
    """`usual` with torch's maxout and dropout, then with ours, then our ways.

    `layer` holds settings of the config by dotted name.
    """
    precision = Precision(settings.precision, device)
    layer = {"scale.precision": precision.name, **layer}
    config, index = _config(settings, layer), _stand_in_index(SAMPLE_SHAPES[settings.preset])
    weights = loss_weights_at(config.objective, 0, 1.0)
    found = []
    wanted = settings.steps or (USUAL_OUR_LAYERS, *ways_for(config))
    for name in (USUAL, *(name for name in (USUAL_OUR_LAYERS,) if name in wanted)):
        ali, space = build_networks(config, index.spec, config.run.seed)
        inputs = _inputs(config, space, device)
        if name == USUAL:
            with_stock_layers(ali)
        usual = UsualStep(
            ali.to(device),
            config.objective.loss,
            config.optim,
            precision,
            compiled=settings.compile,
            penalised=_penalised(config),
            fused=settings.fused_usual,
        )
        found.append(Contestant(name, partial(usual, inputs, weights), ali, (usual.opt_d, usual.opt_g)))
    for way in (way for way in ways_for(config) if way in wanted):
        ours = build_train_state(_config(settings, layer, {"objective.update": way}), index, device, World())
        assert ours.step.rule.name == way
        found.append(Contestant(way, partial(ours.step, inputs, weights), ours.ali, (ours.optimizer,)))
    return found


def run(settings: Settings, say: Say, **layer: Any) -> dict[str, Any]:
    """Measure as `settings` say; the result is JSON-able.

    Args:
        settings: The command's options.
        say: Takes a line about progress.
        layer: Settings of the config by dotted name, for networks smaller than the preset's.

    Raises:
        InputError: Preset, device and precision do not go together.
    """
    device = choose_device(settings.device, 0)
    if settings.clock == "cpu" and device.type == "cuda":
        raise InputError("--clock cpu does not see what a GPU does: leave it out, or add --device cpu.")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    images = _config(settings, layer).data.global_batch_size
    updates = settings.updates or (20 if device.type == "cuda" else 3)
    contestants = make_contestants(settings, device, **layer)
    measured = take_turns(contestants, settings.rounds, updates, device, say, CLOCKS[settings.clock])
    return {
        "settings": {**dataclasses.asdict(settings), "batch": images, "updates": updates},
        "conditions": conditions(device, Precision(settings.precision, device).name),
        "rows": summarise(measured, USUAL, images),
        "ratio_is": RATIO,
    }


def conditions(device: torch.device, precision: str) -> dict[str, Any]:
    """Hardware, versions and date that the figures belong to."""
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": device.type,
        "precision": precision,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        # torch computes fp32 convolutions in TF32 where it may, which decides what fp32 figures mean.
        found |= {"cudnn": torch.backends.cudnn.version(), "tf32_convolutions": torch.backends.cudnn.allow_tf32}
    return found


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(result: dict[str, Any]) -> str:
    """The result as aligned plain text."""
    settings, where = result["settings"], result["conditions"]
    machine = f"{where['cpu']}, {where['threads']} threads on {where['cores']} cores"
    if where["device"] == "cuda":
        tf32 = "on" if where["tf32_convolutions"] else "off"
        machine = f"{where['gpu']}, CUDA {where['cuda']}, cuDNN {where['cudnn']}, TF32 convolutions {tf32}; {machine}"
    lines = [
        f"Preset {settings['preset']}, batch {settings['batch']}, {where['precision']}, "
        f"{'compiled' if settings['compile'] else 'eager'}; {where['date']}",
        f"{machine}; torch {where['torch']}, Python {where['python']}",
        f"{settings['rounds']} rounds, in each {settings['updates']} updates of every step in turn; "
        f"{'time on the clock' if settings['clock'] == 'wall' else 'CPU time of this process, all threads'}",
        "",
        f"{'step':<18}{'images/s':>10}{'ms/update':>11}{'ratio':>8}{'min':>7}{'max':>7}{'peak MB':>9}",
    ]
    for row in result["rows"]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        lines.append(
            f"{row['step']:<18}{row['images_per_second']:>10.1f}{row['seconds_per_update'] * 1e3:>11.2f}"
            f"{row['ratio']:>8.2f}{row['ratio_min']:>7.2f}{row['ratio_max']:>7.2f}{peak:>9}"
        )
    adam = "fused, as ours" if settings["fused_usual"] else "as torch chooses it; ours is fused"
    return "\n".join(
        [
            *lines,
            "",
            f"ratio: {RATIO}.",
            f"{USUAL}: D, then E and G, each with its own passes, torch's maxout and dropout; Adam {adam}.",
        ]
    )


def _at_least_1(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.step", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=sorted(SAMPLE_SHAPES), default="cifar10")
    parser.add_argument("--batch", type=_at_least_1, help="images of an update (as in the preset)")
    parser.add_argument("--rounds", type=_at_least_1, default=5, help="turns of every step (5)")
    parser.add_argument("--updates", type=_at_least_1, help="timed updates in a turn (3; on CUDA 20)")
    parser.add_argument("--threads", type=_at_least_1, help="CPU threads (as torch chooses)")
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
    """The command; exit code 0, or 2 for wrong input."""
    options = vars(_parser().parse_args(arguments))
    file: Path | None = options.pop("json")
    try:
        result = run(Settings(**options), lambda line: print(line, file=sys.stderr, flush=True))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(result))
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
