"""What a run will be, before it is: `--dry-run`."""

from __future__ import annotations

import json

from ali_dist.config import Config
from ali_dist.errors import InputError
from ali_dist.model.build import build_networks, find_architecture
from ali_dist.model.data_spec import DataSpec
from ali_dist.runs.datasets import RunData, open_run_data
from ali_dist.training.update_rules import choose_way

_BYTES_PER_PARAMETER = 16  # weight, gradient and Adam's two moments in fp32


def describe_run(config: Config) -> str:
    """The resolved settings as JSON and, below, sizes, the way of the update, memory and traffic.

    Raises:
        InputError: Model and objective do not go together.
    """
    tables = find_architecture(config.model.architecture)
    objective = config.objective
    precision = "fp32" if config.scale.precision == "auto" else config.scale.precision
    way = choose_way(objective, couples_samples=tables.couples_samples, precision=precision)
    try:
        inputs: RunData | None = open_run_data(config)
        found = ""
    except InputError as missing:
        inputs, found = None, str(missing)
    spec = inputs.train.index.spec if inputs else _assumed_spec(config, tables.image_size)
    ali, _ = build_networks(config, spec, seed=0)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in ali.named_children()}
    total = sum(sizes.values())
    size, steps = config.data.global_batch_size, config.total_steps()
    lines = [
        json.dumps(config.to_mapping(), indent=2),
        "",
        "parameters   " + ", ".join(f"{name} {count:,}" for name, count in sizes.items()) + f"; all {total:,}",
        f"update       {way}, {steps:,} updates of {size} images in {config.data.num_lanes()} lanes",
        f"memory       {total * _BYTES_PER_PARAMETER / 1e6:,.1f} MB a worker for weights, gradients and Adam, "
        "plus activations",
        f"traffic      {total * 4 / 1e6:,.1f} MB of gradients an update and worker, if there is more than one",
    ]
    if inputs:
        index = inputs.train.index
        megabytes = index.num_samples * index.decoded_bytes / 1e6
        epochs = config.run.images / index.num_samples
        lines.append(
            f"data         {index.num_samples:,} samples of {list(index.shape)}, {megabytes:,.1f} MB decoded; "
            f"{epochs:,.1f} epochs"
        )
    else:
        lines.append(f"data         not there yet: {found}")
    return "\n".join(lines)


def _assumed_spec(config: Config, image_size: int | None) -> DataSpec:
    """Points of two numbers, small grey images or larger colour ones: good enough until there are data."""
    shape = (2,) if image_size is None else (1 if image_size < 32 else 3, image_size, image_size)
    ten, forty = (tuple(map(str, range(n))) for n in (10, 40))  # as many as CIFAR10 and SVHN, and as CelebA have
    attributes = forty if config.model.condition == "attributes" else ()
    return DataSpec(shape, classes=() if attributes else ten, attributes=attributes)
