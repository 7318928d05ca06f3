"""What a run will be, before it is: `--dry-run`."""

from __future__ import annotations

import json
import textwrap

import torch

from ali_dist.config import Config
from ali_dist.config.wording import format_count
from ali_dist.data.order import check_batch
from ali_dist.distributed import World, choose_device
from ali_dist.errors import InputError, StorageError
from ali_dist.model.build import build_networks, find_architecture, usual_image_size
from ali_dist.model.data_spec import DataSpec
from ali_dist.runs.checkpoint import CheckpointStore
from ali_dist.runs.datasets import RunData, open_run_data, open_run_store
from ali_dist.runs.trackers import check_trackers
from ali_dist.training.memory import MemoryEstimate, estimate_memory
from ali_dist.training.resume import check_continues
from ali_dist.training.setup import check_rows
from ali_dist.training.speed import time_updates
from ali_dist.training.update_rules import Situation, choose_update_rule

_LABEL = 13  # characters of the column of labels
_EXAMPLE_GPU = 16 * 2**30


def describe_run(config: Config, width: int | None = None) -> str:
    """The plan in about ten lines, and below it the resolved settings as JSON.

    Args:
        config: The run.
        width: Characters of a line of the plan; None: as many as it has.

    Raises:
        InputError: Model and objective do not go together, or a run of this name is of other settings or data.
    """
    rows = [f"{name:<{_LABEL}}{text}" for name, text in _plan_run(config)]
    if width is not None:
        rows = [_fold(row, max(width, 2 * _LABEL)) for row in rows]
    return "\n".join([*rows, "", "settings:", json.dumps(config.to_mapping(), indent=2)])


def _fold(row: str, width: int) -> str:
    return textwrap.fill(row, width, subsequent_indent=" " * _LABEL, break_long_words=False, break_on_hyphens=False)


def _plan_run(config: Config) -> list[tuple[str, str]]:
    """What would be done, line by line: a label and a sentence each."""
    check_trackers(config.report.tracker_names())
    data, why_no_data = _open_data_if_there(config)
    spec = data.train.index.spec if data else _assume_spec(config)
    situation = Situation(
        objective=config.objective,
        couples_samples=find_architecture(config, spec).couples_samples,
        precision="fp32" if config.scale.precision == "auto" else config.scale.precision,
    )
    rule = choose_update_rule(config.objective.update, situation)
    ali, space = build_networks(config, spec, seed=0)
    check_rows(config, ali, slice(0, config.data.global_batch_size), World())
    if data is not None:
        check_batch(data.train.index.num_samples, config.data.global_batch_size)
        _check_continues(config, data)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in ali.named_children()}
    total = sum(sizes.values())
    updates = (
        f"{format_count(config.total_steps(), 'update')} of {format_count(config.data.global_batch_size, 'image')} in "
        f"{format_count(config.data.num_lanes(), 'lane')}, by the rule {rule.name!r}"
    )
    shape = " x ".join(map(str, spec.shape)) + ("" if data else " (assumed)")
    latents = format_count(config.model.latent_size, "latent variable")
    networks = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
    return [
        ("run", f"{config.run.name}: {format_count(config.run.images, 'image')}, {_describe_workers(config)}"),
        ("data", _describe_data(config, data) if data else f"not there yet: {why_no_data}"),
        *([("size", resize)] if data and (resize := space.describe_resize()) else []),
        ("model", f"{config.model.architecture} for {shape}, {latents}"),
        ("parameters", f"{networks}; all {total:,}"),
        ("update", updates),
        ("memory", _describe_memory(config, estimate_memory(config, spec, rule))),
        ("speed", _describe_speed(config, spec)),
        ("traffic", f"{total * 4 / 1e6:,.1f} MB of gradients an update and worker, if there is more than one"),
        ("results", _describe_results(config)),
    ]


def _check_continues(config: Config, data: RunData) -> None:
    """Refuse a run that is there already and would not go on with these settings or data, as its start would."""
    try:
        checkpoints = CheckpointStore(open_run_store(config), keep=1, say=lambda text: None)
        check_continues(config, checkpoints, data.train.index.fingerprint)
    except StorageError:
        return  # the line about results says so


def _describe_workers(config: Config) -> str:
    """What trains, as far as the settings say it."""
    workers = config.scale.worker_range()
    if workers is None:
        return "in this process (inside a Ray job: by a worker for each GPU)"
    low, high = workers
    if high == 0:
        return "in this process"
    return f"by {low} to {high} Ray workers" if low < high else f"by {format_count(low, 'Ray worker')}"


def _describe_results(config: Config) -> str:
    """Where the results go, and what lies there already."""
    store = open_run_store(config)
    try:
        summary = json.loads(store.get("summary.json")) if store.stat("summary.json") else None
        has_checkpoints = bool(store.list("checkpoints/"))
    except (InputError, StorageError, ValueError) as error:
        return f"{store.url}, of which it cannot be seen whether it holds anything: {error}"
    if isinstance(summary, dict) and summary.get("status") == "finished":
        seen = summary.get("images", 0)
        ends = "it would go on" if seen < config.run.images else "raise run.images, or choose another run.name"
        return f"{store.url}, where a run of this name has finished after {seen:,} images: {ends}"
    if has_checkpoints:
        return f"{store.url}, where a run of this name has checkpoints: it goes on from the newest one"
    return f"{store.url}: report.html, summary.json, images/ and checkpoints/; nothing of it is there yet"


def _describe_memory(config: Config, estimate: MemoryEstimate) -> str:
    """What a worker needs, and how many samples at once fit on this machine's GPU, or on one as many have."""
    half_precision = config.scale.precision in ("bf16", "fp16")
    low, _ = config.scale.worker_range() or (1, 1)
    rows = -(-config.data.global_batch_size // max(1, low))
    at_once = min(config.scale.micro_batch or rows, rows)
    activations = estimate.activations(at_once, half_precision=half_precision)
    has_gpu = torch.cuda.is_available()
    gpu_memory = torch.cuda.get_device_properties(0).total_memory if has_gpu else _EXAMPLE_GPU
    gpu = f"{'this' if has_gpu else 'a'} GPU of {gpu_memory / 2**30:.0f} GiB"
    fitting = estimate.largest_micro_batch(
        gpu_memory, packing=config.objective.packing, half_precision=half_precision or config.scale.precision == "auto"
    )
    if fitting >= at_once:
        advice = f"fits on {gpu}"
    elif fitting:
        advice = f"too much for {gpu}: set scale.micro_batch to {fitting}"
    else:
        advice = f"too much for {gpu}, even sample by sample"
    return (
        f"{estimate.weights / 1e6:,.1f} MB a worker for weights, gradients and Adam, and about "
        f"{activations / 1e6:,.1f} MB for the activations of {at_once} samples in "
        f"{config.scale.precision if half_precision else 'fp32'}; {advice}"
    )


def _describe_speed(config: Config, spec: DataSpec) -> str:
    """What a few updates of noise take here, and what follows for the run."""
    if config.model.decoder_from is not None:
        return "not measured: it depends on the run in model.decoder_from"
    if config.scale.compile:
        return "not measured: compiling would take minutes (scale.compile)"
    device = choose_device(config.scale.device, 0)
    try:
        seconds, updates = time_updates(config, spec, device)
    except torch.OutOfMemoryError:
        return "not measured: an update does not fit in this GPU's memory, see scale.micro_batch"
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else format_count(torch.get_num_threads(), "CPU thread")
    )
    of_thousand, of_run = (_format_duration(images * seconds) for images in (1000, config.run.images))
    return (
        f"{1 / seconds:,.0f} images/s in {updates} update{'s' * (updates > 1)} of noise on {name}, without data and "
        f"evaluation: {of_thousand} for 1,000 images, {of_run} for the run with one worker like this"
    )


def _format_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"


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
    samples = format_count(index.num_samples, "sample")
    return f"{samples} of {list(index.shape)}, {megabytes:,.1f} MB decoded; {epochs:,.1f} epochs"


def _assume_spec(config: Config) -> DataSpec:
    """Points of two numbers, small gray images or larger color ones: good enough until there are data."""
    image_size = usual_image_size(config)
    shape = (2,) if image_size is None else (1 if image_size < 32 else 3, image_size, image_size)
    if config.model.condition == "attributes":
        return DataSpec(shape, attributes=tuple(map(str, range(40))))  # as many as CelebA has
    return DataSpec(shape, classes=tuple(map(str, range(10))))  # as many as CIFAR10 and SVHN have
