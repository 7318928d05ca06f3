"""A Ray cluster of this machine alone, which ends with the run it was started for.

It has as few processes as training needs: each is a Python that starts while the run waits. Ray's dashboard, its
autoscaler and most of its agent serve clusters that outlive a run. What starts them is not public (Ray 2.60): where
another version has none of these places, all of them start, and that only takes longer.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from ali_dist.loading_note import load_meanwhile

OWN_CLUSTER_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody gives notice to the machine
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",  # the controller is in this process, whose loggers are ours
}
_ACTORS = 1  # of a run: Ray Train's, in which workers wait for each other
_NUMBERS_OF_PROCESSES = ("--num_prestart_python_workers", "--maximum_startup_concurrency")
_LOG_MONITOR_NICENESS = 10  # it has nothing to read until the workers write, and others are waited for


def start_own_cluster(cpus: int, workers: int, **options: Any) -> None:
    """Start a cluster of this machine, and connect this process to it.

    Args:
        cpus: How many CPUs the cluster is said to have.
        workers: How many workers it is for: processes are made ready for them and for the actor of a run, and not as
            many as there are CPUs.
        options: Those of `ray.init`.

    Raises:
        ValueError: There is a cluster already that `ray start` left on this machine.
    """
    load_meanwhile("ali_dist.launchers.ray_trainer")  # loads Ray Train, which takes no longer than the cluster's start
    from ray._private import node, services, utils

    with (
        our_sigterm_kept(),
        replaced(node.Node, "start_api_server", lambda _: _start_no_dashboard),
        replaced(node.Node, "start_monitor", lambda _: _start_nothing),
        replaced(node.Node, "start_log_monitor", _start_behind_others),
        replaced(utils, "get_dashboard_dependency_error", lambda _: _say_that_it_is_missing),
        replaced(services, "find_gcs_addresses", lambda _: _NoAddresses()),
        replaced(services, "start_ray_process", lambda start: _start_for_this_run(start, workers + _ACTORS)),
    ):
        ray.init(num_cpus=cpus, include_dashboard=False, **options)


@contextlib.contextmanager
def without_successor() -> Iterator[None]:
    """Within the block, Ray starts no cluster of its own accord for a call that finds this one at its end."""
    from ray._private import auto_init_hook

    with replaced(auto_init_hook, "enable_auto_connect", lambda _: False):
        yield


@contextlib.contextmanager
def our_sigterm_kept() -> Iterator[None]:
    """Within the block, Ray does not take SIGTERM over, on which it would end this process with code 15."""
    from ray._private import utils

    with replaced(utils, "set_sigterm_handler", lambda _: _take_nothing_over):
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, replace: Callable[[Any], Any]) -> Iterator[None]:
    """Within the block, an attribute has what `replace` makes of its value; one that is missing stays so."""
    if not hasattr(owner, name):
        yield
        return
    previous = getattr(owner, name)
    setattr(owner, name, replace(previous))
    try:
        yield
    finally:
        setattr(owner, name, previous)


def _start_no_dashboard(node: Any, **_: Any) -> None:
    node._webui_url = ""


def _take_nothing_over(_: Any) -> None:
    """In place of a function of Ray's that sets a signal handler."""


def _start_nothing(_: Any) -> None:
    """In place of a method of Ray's that starts a process."""


def _say_that_it_is_missing() -> ImportError:
    """What Ray hears of the dashboard's libraries, which its agent then does not load, nor this process."""
    return ImportError("unused")


class _NoAddresses:
    """In place of a look at each process of the machine, for a warning where several are heads of clusters.

    Which of them `ray start` has left here is known from a file.
    """

    def __call__(self) -> set[str]:
        return set()

    def cache_clear(self) -> None:
        """There is none."""


def _start_behind_others(start: Callable[[Any], None]) -> Callable[[Any], None]:
    """A method that starts the log monitor, and lets all others have the CPUs first."""

    def start_nicely(node: Any) -> None:
        start(node)
        with contextlib.suppress(LookupError, AttributeError, OSError):
            os.setpriority(os.PRIO_PROCESS, node.all_processes["log_monitor"][0].process.pid, _LOG_MONITOR_NICENESS)

    return start_nicely


def _start_for_this_run(start: Callable[..., Any], processes: int) -> Callable[..., Any]:
    """A function that starts a process, and has a raylet start `ray_bare_agent` and `processes` for actors.

    Ray's own would start no more of these at a time than there are CPUs, which takes longer than all at once.
    """
    agent = str(Path(ray.__file__).parent / "dashboard" / "agent.py")
    bare_agent = str(Path(__file__).with_name("ray_bare_agent.py"))

    def adapt(word: str) -> str:
        name = word.partition("=")[0]
        if name == "--dashboard_agent_command":
            return word.replace(agent, bare_agent)
        return f"{name}={processes}" if name in _NUMBERS_OF_PROCESSES else word

    def start_process(command: list[str], *arguments: Any, **options: Any) -> Any:
        return start([adapt(word) for word in command], *arguments, **options)

    return start_process
