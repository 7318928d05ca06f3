"""What a driver of Ray refuses before it starts any worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from ali_dist.errors import InputError
from ali_dist.launchers import ray_train
from ali_dist.launchers.ray_notes import Notes
from tests.helpers.runs import tiny_config


def test_nccl_without_gpus_is_refused_before_workers_start(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, scale__backend="nccl", scale__device="cpu", scale__workers="2")
    with pytest.raises(InputError, match="scale.backend is 'nccl', which needs GPUs, but these workers are on CPUs"):
        ray_train._make_trainer(config, Notes(), (), is_own_cluster=True)
