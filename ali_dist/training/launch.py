"""Runs in this process: debug mode, and one of torchrun's processes."""

from __future__ import annotations

import torch.distributed as dist

from ali_dist.config import Config
from ali_dist.data.sources import ensure_prepared
from ali_dist.training.context import local_context
from ali_dist.training.loop import fit
from ali_dist.training.run_folder import Record


def prepare_data(config: Config) -> None:
    """Write a preset's built-in data at data.url if nothing is there yet."""
    if config.data.source is not None:
        ensure_prepared(config.data.source, config.data.url)


def run_local(config: Config) -> Record | None:
    """Train here; the summary on rank 0."""
    with local_context(config.scale.device, config.scale.backend, config.scale.threads) as context:
        prepare_data(config)
        summary = fit(config, context)
        if context.world.size > 1:
            dist.barrier()  # rank 0 still evaluates; a process that leaves the group before may abort and end the run
        return summary
