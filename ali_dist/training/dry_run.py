"""What a run will be, before it is: `--dry-run`."""

from __future__ import annotations

import json

from ali_dist.config import Config
from ali_dist.errors import InputError
from ali_dist.model.build import build_networks, find_architecture, usual_image_size
from ali_dist.model.data_spec import DataSpec
from ali_dist.runs.datasets import RunData, open_run_data
from ali_dist.training.update_rules import Situation, choose_update_rule

_BYTES_PER_PARAMETER = 16  # weight, gradient and Adam's two moments in fp32


def describe_run(config: Config) -> str:
    """The resolved settings as JSON and, below, sizes, the update rule, memory and traffic.

    Raises:
        InputError: Model and objective do not go together.
    """
    data, why_no_data = _open_data_if_there(config)
    spec = data.train.index.spec if data else _assume_spec(config)
    situation = Situation(
        objective=config.objective,
        couples_samples=find_architecture(config, spec).couples_samples,
        precision="fp32" if config.scale.precision == "auto" else config.scale.precision,
    )
    rule = choose_update_rule(config.objective.update, situation)
    ali, _ = build_networks(config, spec, seed=0)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in ali.named_children()}
    total = sum(sizes.values())
    return "\n".join(
        [
            json.dumps(config.to_mapping(), indent=2),
            "",
            "parameters   " + ", ".join(f"{name} {count:,}" for name, count in sizes.items()) + f"; all {total:,}",
            f"update       {rule.name}, {config.total_steps():,} updates of {config.data.global_batch_size} images in "
            f"{config.data.num_lanes()} lanes",
            f"memory       {total * _BYTES_PER_PARAMETER / 1e6:,.1f} MB a worker for weights, gradients and Adam, "
            "plus activations",
            f"traffic      {total * 4 / 1e6:,.1f} MB of gradients an update and worker, if there is more than one",
            f"data         {_describe_data(config, data) if data else f'not there yet: {why_no_data}'}",
        ]
    )


def _open_data_if_there(config: Config) -> tuple[RunData | None, str]:
    try:
        return open_run_data(config), ""
    except InputError as refusal:
        if config.data.source is not None:
            return None, f"training writes them (data.source is {config.data.source!r})"
        return None, str(refusal)


def _describe_data(config: Config, data: RunData) -> str:
    index = data.train.index
    megabytes = index.num_samples * index.decoded_bytes / 1e6
    epochs = config.run.images / index.num_samples
    return f"{index.num_samples:,} samples of {list(index.shape)}, {megabytes:,.1f} MB decoded; {epochs:,.1f} epochs"


def _assume_spec(config: Config) -> DataSpec:
    """Points of two numbers, small gray images or larger color ones: good enough until there are data."""
    image_size = usual_image_size(config)
    shape = (2,) if image_size is None else (1 if image_size < 32 else 3, image_size, image_size)
    if config.model.condition == "attributes":
        return DataSpec(shape, attributes=tuple(map(str, range(40))))  # as many as CelebA has
    return DataSpec(shape, classes=tuple(map(str, range(10))))  # as many as CIFAR10 and SVHN have
