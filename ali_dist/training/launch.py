"""Runs in this process: debug mode, and one of torchrun's processes."""

from __future__ import annotations

import torch.distributed as dist

from ali_dist.config import Config
from ali_dist.data.sources import ensure_prepared
from ali_dist.errors import Stopped
from ali_dist.training.context import LocalContext, local_context
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
        try:
            summary = fit(config, context)
        except Stopped:  # all ranks have
            _wait_for_all(context)
            raise
        _wait_for_all(context)
        return summary


def _wait_for_all(context: LocalContext) -> None:
    """Leave together: rank 0 evaluates or saves longer, and a rank that left before might abort and end the run."""
    if context.world.size > 1:
        dist.barrier()
