"""Several ranks go on through an outage of the storage together, and end together if it lasts.

Run: `make test ARGS=tests/distributed/test_outage.py`
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping
from ali_dist.distributed import World, failing_together
from ali_dist.errors import InputError, OutageError, StorageError, TrainingError
from ali_dist.runs import background_saver, run_writer
from ali_dist.storage.base import MissingObject
from ali_dist.training import saving
from ali_dist.training.loop import fit
from ali_dist.training.setup import TrainingRun
from tests.helpers.arrays import write_arrays
from tests.helpers.distributed import run_distributed
from tests.helpers.fault_server import ENV, FaultServer
from tests.helpers.runs import StoppingContext, tiny_config

pytestmark = pytest.mark.distributed
RUN = "bucket/runs/tiny"


def train_rank(rank: int, size: int, mapping: dict[str, Any]) -> str:
    """Train one rank; returns how it ended."""
    os.environ.update(ENV)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(background_saver, "_FIRST_PAUSE_SECONDS", 0.05)
        patch.setattr(run_writer, "_LAST_PAUSES", ())
        try:
            fit(from_mapping(mapping), StoppingContext(World(rank, rank, size)))
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "finished"


def train_rank_until_saving_fails_in_a_save(rank: int, size: int, mapping: dict[str, Any]) -> str:
    """As `train_rank`, where saving fails for good between the wait for the turn to save and the save itself."""
    average_statistics = saving.average_statistics

    def average_until_saving_fails(run: TrainingRun) -> None:
        average_statistics(run)
        deadline = time.monotonic() + 20
        while run.world.is_main and run.progress.step == 6 and not run.checkpoints.has_failed():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "average_statistics", average_until_saving_fails)
        return train_rank(rank, size, mapping)


def config_of(server: FaultServer, folder: Path, **changes: Any) -> Config:
    """Configure a run of 8 updates in S3 that saves after every second one."""
    x = np.random.default_rng(0).integers(0, 256, (120, 1, 8, 8), dtype=np.uint8)
    write_arrays(folder / "data" / "train", x, np.arange(120) % 4, classes=("a", "b", "c", "d"))
    server.serve_objects({"bucket": b""})
    usual = {
        "run__dir": "s3://bucket/runs",
        "data__source": "none",
        "report__checkpoint_every": 48,
        "storage__endpoint_url": server.endpoint_url,
        "storage__attempts": 1,
    }
    return tiny_config(folder, **{**usual, **changes})


def is_saved(server: FaultServer, step: int) -> bool:
    return f"{RUN}/checkpoints/step-{step:09d}/manifest.json" in server.objects


def test_two_ranks_go_on_through_an_outage(tmp_path: Path) -> None:
    refused: list[str] = []

    def refuse(method: str, name: str) -> bool:
        is_refused = method == "PUT" and is_saved(server, 2) and len(refused) < 8
        if is_refused:
            refused.append(name)
        return is_refused

    with FaultServer() as server:
        config = config_of(server, tmp_path)
        server.refuses = refuse
        assert run_distributed(train_rank, 2, 2, config.to_mapping()) == ["finished", "finished"]
        assert len(refused) == 8
        assert is_saved(server, 8)


@pytest.mark.parametrize(
    ("train", "minutes"),
    [(train_rank, 0.01), (train_rank_until_saving_fails_in_a_save, 0.03)],
    ids=["early", "in a save"],
)
def test_two_ranks_end_together_if_it_lasts(train: Callable[..., str], minutes: float, tmp_path: Path) -> None:
    with FaultServer() as server:
        config = config_of(server, tmp_path, storage__outage_minutes=minutes)
        server.refuses = lambda method, name: method == "PUT" and is_saved(server, 2)
        first, second = run_distributed(train, 2, 2, config.to_mapping())
        assert first.startswith("OutageError: Nothing could be saved to s3://bucket/runs/tiny for ")
        assert second == first
        assert is_saved(server, 2)


@pytest.mark.parametrize("name", ["metrics.jsonl", "starts.json"])
def test_two_ranks_end_together_if_rank_0_cannot_open_the_run(name: str, tmp_path: Path) -> None:
    with FaultServer() as server:
        config = config_of(server, tmp_path)
        server.refuses = lambda method, url: url == f"{RUN}/{name}"
        first, second = run_distributed(train_rank, 2, 2, config.to_mapping())
        assert first.startswith("StorageError: ")
        assert second == first


def raise_one_by_one(rank: int, errors: list[Exception]) -> list[tuple[str, str]]:
    """Let the last of the ranks have each of the errors in turn, and then none; returns what this rank had to raise."""
    raised = []
    for error in [*errors, None]:
        try:
            with failing_together(torch.device("cpu"), World(rank, rank, 2), "a test"):
                if error is not None and rank == 1:
                    raise error
        except Exception as told:
            raised.append((type(told).__name__, str(told)))
    return raised


def test_an_error_of_one_rank_is_raised_on_all() -> None:
    told_as = {
        InputError: "InputError",
        MissingObject: "InputError",
        StorageError: "StorageError",
        OutageError: "OutageError",
        TrainingError: "TrainingError",
        KeyError: "TrainingError",
    }
    others, own = run_distributed(raise_one_by_one, 2, [kind("no") for kind in told_as])
    assert [kind for kind, _ in others] == list(told_as.values())
    assert [kind for kind, _ in own] == [kind.__name__ for kind in told_as]
    assert [text for _, text in others] == [text for _, text in own]
