"""What a user sees of the lines that Ray's processes write: not what Ray Train says of its own steps (Ray 2.60).

All of it stays in Ray's log files. A mistake in the training itself is seen with its traceback, which the worker writes
that made it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

WriteLine = Callable[[str], None]
_HARMLESS = re.compile(
    r"^Requesting resources: "
    r"|^Attempting to start training worker group of size "
    r"|^Setting up process group for: "
    r"|^Failed to query Ray Train Controller actor state\. .*Continuing to monitor\.$"  # where there is no dashboard
    r"|core_worker\.cc:\d+: Actor with class name: 'PreemptionWatcher'"
)
_LOST_WORKER = re.compile(r"^A worker died or was killed while executing a task by an unexpected system error\.")
"""What a machine's raylet says beside the controller."""
_PLACES = re.compile(r"^Started training worker group of size |^- \(ip=\S+, pid=\d+\) world_rank=")

_FAILURE = re.compile(r"^\[FailurePolicy\] (\w+)|^Graceful shutdown of backend failed\.")
_NEXT_STEP = re.compile(r"^(Requesting resources|Attempting to start|Started training|Detected |Using |Not |Deciding )")
_COUNT = re.compile(r"^  Error count: (\d+) \(max allowed: (\S+)\)$")
_LOST_PEER = re.compile(r"gloo|NCCL|Connection (reset|closed|refused)|Broken pipe", re.IGNORECASE)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error says no more than that another rank has gone, in the middle of a collective."""
    import torch.distributed as dist  # here, because drivers and controllers do without PyTorch

    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and bool(_LOST_PEER.search(str(error)))
    )


def silence_training_errors() -> None:
    """Keep Ray from writing the traceback of an error that ends the training function of this worker."""
    with contextlib.suppress(ImportError, AttributeError):  # not public; other versions write it
        from ray.train.v2._internal import util

        util.logger.setLevel(logging.CRITICAL + 1)


class RayLines:
    """Drops lines from what a driver shows of its cluster's processes.

    Args:
        say: Gets a sentence of ours in place of the page that Ray's controller writes when a worker is lost.
        keeps_places: Whether to keep on which machine each worker is: there may be more than one.
    """

    def __init__(self, say: WriteLine, *, keeps_places: bool) -> None:
        self._say = say
        self._dropped = (_HARMLESS,) if keeps_places else (_HARMLESS, _PLACES)
        self._failing: dict[Any, str] = {}  # what is decided about a failure that a controller tells of, by its pid

    def keep(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What a process has written, less the lines that are to be dropped.

        Args:
            batch: As Ray hands it over: its `lines`, and which process they come from.
        """
        lines: list[str] = batch.get("lines", [])
        if batch.get("actor_name") == "PreemptionWatcher":  # it has nothing to say but that Ray is gone at the end
            return {**batch, "lines": []}
        if batch.get("actor_name") == "TrainController":
            lines = [line for line in lines if not self._tells_of_failure(batch.get("pid"), line)]
        return {**batch, "lines": [line for line in lines if not any(each.search(line) for each in self._dropped)]}

    def _tells_of_failure(self, pid: Any, line: str) -> bool:
        """Whether a controller's line is one of many about a failure, which end with its next step."""
        if begins := _FAILURE.search(line):
            self._failing[pid] = begins[1] or ""
        elif _NEXT_STEP.search(line):
            self._failing.pop(pid, None)
        elif (count := _COUNT.search(line)) and self._failing.get(pid) == "RETRY":
            self._say(
                f"A worker is lost or has failed: all start again from the newest checkpoint ({count[1]} of at most "
                f"{count[2]} times)."
            )
        return pid in self._failing


def show_without_rays_own(say: WriteLine, *, keeps_places: bool) -> None:
    """Show what Ray's processes write in this process by way of `RayLines`.

    The places where Ray takes in what they write are not public; a version without them shows all lines. What a raylet
    says comes another way than what workers write.
    """
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

        show = dict(dispatcher.handlers).get("ray_print_logs")
        if show is not None:
            lines = RayLines(say, keeps_places=keeps_places)
            dispatcher.remove_handler("ray_print_logs")
            dispatcher.add_handler("ray_print_logs", lambda batch: show(lines.keep(batch)))
    with contextlib.suppress(ImportError, AttributeError):
        from ray._private import worker

        show_error = getattr(worker.print_to_stdstream, "shows", worker.print_to_stdstream)
        worker.print_to_stdstream = _ErrorFilter(show_error)  # type: ignore[assignment]


@contextlib.contextmanager
def controller_shown(say: WriteLine) -> Iterator[None]:
    """Within the block, `RayLines` also stands between a user and a controller that is a part of this process.

    Where the block is left by an exception, nothing is shown from then on: a thread may still be in the controller.

    Args:
        say: Gets each line that is left of what the controller logs, and the sentences of ours.
    """
    logger = logging.getLogger("ray.train")
    level, propagates = logger.level, logger.propagate
    handler = _ControllerHandler(say)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    except BaseException:
        logger.addHandler(logging.NullHandler())
        raise
    else:
        logger.setLevel(level)
        logger.propagate = propagates
    finally:
        logger.removeHandler(handler)


class _ControllerHandler(logging.Handler):
    def __init__(self, say: WriteLine) -> None:
        super().__init__()
        self._say = say
        self._lines = RayLines(say, keeps_places=False)

    def emit(self, record: logging.LogRecord) -> None:
        written = {"actor_name": "TrainController", "pid": os.getpid(), "lines": self.format(record).splitlines()}
        for line in self._lines.keep(written)["lines"]:
            self._say(line)


@dataclass(frozen=True, slots=True)
class _ErrorFilter:
    """Stands in Ray for its function that shows errors of machines.

    Attributes:
        shows: That function.
    """

    shows: Callable[..., None]

    def __call__(self, batch: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [line for line in batch["lines"] if not _LOST_WORKER.search(line)]
        if lines:
            self.shows({**batch, "lines": lines}, ignore_prefix)
