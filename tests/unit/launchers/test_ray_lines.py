"""Which lines of Ray's processes a user sees."""

from __future__ import annotations

import logging

import pytest
import torch.distributed as dist

from ali_dist.launchers.ray_lines import RayLines, controller_shown, is_lost_peer, show_without_rays_own

RAYS_OWN = (
    "Requesting resources: {'CPU': 1.0} * 2",
    "Attempting to start training worker group of size 2 with the following resources: [{'CPU': 1.0}] * 2",
    "Setting up process group for: env:// [rank=0, world_size=2]",
    "Failed to query Ray Train Controller actor state. State API may be unavailable. Continuing to monitor.",
    "[2026-11-27 18:56:39,695 E 1 5] core_worker.cc:2465: Actor with class name: 'PreemptionWatcher' and ID: '43'",
)
PLACES = (
    "Started training worker group of size 2: ",
    "- (ip=192.0.2.2, pid=26750) world_rank=0, local_rank=0, node_rank=0",
)
OF_USE = (
    "18:57 3,200 / 8,000 images · 0:33 left · 143 img/s",
    "[2026-11-27 18:56:39,695 E 1 5] core_worker.cc:2465: Actor with class name: 'Other' and ID: '43'",
    "[FailurePolicy] RETRY",  # by another process than the controller
    "ValueError: Requesting resources: that is somebody's message",
    "1 Workers (tasks / actors) killed due to memory pressure (OOM), 0 Workers crashed due to other reasons",
)


def page_of_failure(decision: str, count: int) -> list[str]:
    return [
        f"[FailurePolicy] {decision}",
        "  Source: worker group",
        f"  Error count: {count} (max allowed: 3)",
        "Error: Training failed due to worker errors:",
        "[Rank 0 Error Snippet]:",
        "A worker health check failed.",
        "Traceback (most recent call last):",
        "",
    ]


SHUTDOWN = ["Graceful shutdown of backend failed. This is expected if one of the workers has crashed.", "  File ..."]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.mark.parametrize("keeps_places", [False, True])
def test_of_what_workers_write_only_what_ray_says_of_itself_is_dropped(said: list[str], keeps_places: bool) -> None:
    lines = RayLines(said.append, keeps_places=keeps_places)
    batch = {"pid": 7, "lines": [*RAYS_OWN, *PLACES, *OF_USE]}
    assert lines.keep(batch) == {"pid": 7, "lines": [*(PLACES if keeps_places else ()), *OF_USE]}
    assert said == []


def test_a_lost_worker_is_one_sentence_however_the_page_about_it_is_cut(said: list[str]) -> None:
    """What the controller says after its next step is seen again."""
    page = [
        *page_of_failure("RETRY", 1),
        *SHUTDOWN,
        "Requesting resources: {'CPU': 1.0} * 2",
        "A word of the controller.",
    ]
    for cut in range(len(page) + 1):
        said.clear()
        lines = RayLines(said.append, keeps_places=False)
        batches = [{"pid": 7, "actor_name": "TrainController", "lines": part} for part in (page[:cut], page[cut:])]
        assert [line for batch in batches for line in lines.keep(batch)["lines"]] == ["A word of the controller."]
        assert said == [
            "A worker is lost or has failed: all start again from the newest checkpoint (1 of at most 3 times)."
        ]


def test_a_failure_that_ends_the_run_promises_no_start(said: list[str]) -> None:
    lines = RayLines(said.append, keeps_places=False)
    batch = {"pid": 7, "actor_name": "TrainController", "lines": page_of_failure("RAISE", 4)}
    assert lines.keep(batch)["lines"] == []
    assert said == []


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error [192.0.2.2]:2267: Connection reset by peer"), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [192.0.2.2]:2267"), True),
        (dist.DistBackendError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("NCCL"), False),
        (ConnectionResetError("Connection reset by peer"), False),
    ],
)
def test_only_what_a_collective_says_of_another_rank_is_a_lost_one(error: Exception, is_lost: bool) -> None:
    assert is_lost_peer(error) == is_lost


def test_what_a_machine_says_of_a_lost_worker_is_not_shown(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """However often sessions begin; other errors of machines are."""
    from ray._private import worker

    shown: list[tuple[list[str], bool]] = []
    monkeypatch.setattr(worker, "print_to_stdstream", lambda batch, prefix: shown.append((batch["lines"], prefix)))
    show_without_rays_own(said.append, keeps_places=False)
    show_without_rays_own(said.append, keeps_places=False)
    lost = "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot ..."
    worker.print_to_stdstream({"pid": "raylet", "lines": [lost]}, ignore_prefix=False)
    worker.print_to_stdstream({"pid": "raylet", "lines": ["The disk is nearly full."]}, ignore_prefix=False)
    assert shown == [(["The disk is nearly full."], False)]


def test_a_controller_in_this_process_is_heard_as_one_elsewhere(said: list[str]) -> None:
    logger = logging.getLogger("ray.train.v2.controller")
    with controller_shown(said.append):
        logger.info(RAYS_OWN[0])
        logger.info("\n".join(page_of_failure("RETRY", 1)), exc_info=ValueError("lost"))
        logger.info("\n".join(PLACES))
        logger.info("Detected changes in the cluster's size.")
        logger.debug("a detail")
    logger.info("after the run")
    assert said == [
        "A worker is lost or has failed: all start again from the newest checkpoint (1 of at most 3 times).",
        "Detected changes in the cluster's size.",
    ]
