"""The Ray cluster a run lies on: which one, how many workers it gets, and whether there is or will be room for them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.util.placement_group import placement_group, remove_placement_group

from ali_dist.config import Config
from ali_dist.errors import InputError
from ali_dist.launchers.resources import (
    Resources,
    check_lanes,
    format_inventory,
    format_request,
    offers_resource,
    workers_after_growth,
    workers_that_fit,
)

# `ray up` leaves what its autoscaler works with on the head, where jobs' drivers run, too.
_AUTOSCALING = Path("~/ray_bootstrap_config.yaml")
_IDLE_SECONDS = 45.0  # an autoscaler that has done nothing for so long will do nothing
_POLL_SECONDS = 2.0
_SAY_SECONDS = 60.0
_GET_ADDRESS = 0x8915  # SIOCGIFADDR
Say = Callable[[str], None]


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Ray, connected: the job's or RAY_ADDRESS's cluster, one that `ray start` left on this machine, or our own.

    Our own is local, ends with the block and has room for the workers. It keeps Ray's dashboard, on the loopback
    interface, because Ray Train asks that for the state of its actors.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ours = not ray.is_initialized()
    if ours:
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=True)
        else:
            _, most = config.scale.worker_range() or (1, 1)
            need = most * config.scale.cpus_per_worker
            try:
                cpus = max(os.cpu_count() or 1, int(-(-need // 1)))
                ray.init(num_cpus=cpus, log_to_driver=True)
            except ValueError:  # Ray found one of `ray start`, whose CPUs are not ours to choose
                ray.init(log_to_driver=True)
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def alive_nodes() -> list[Resources]:
    """What each machine that is there now has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _read_autoscaler_config() -> dict[str, Any]:
    """The autoscaler's configuration; empty where it is not on this machine, or there is none."""
    file = _AUTOSCALING.expanduser()
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def has_gpus() -> bool:
    """Whether the cluster has GPUs, or gets some when they are asked for."""
    if ray.cluster_resources().get("GPU", 0) > 0:
        return True
    return autoscaler_state() is not None and offers_resource(_read_autoscaler_config(), "GPU")


def choose_workers(config: Config, nodes: list[Resources], each: Resources, say: Say) -> tuple[int, int]:
    """(fewest, most) workers: as asked; else one for each GPU of the cluster, or for each machine with CPUs to give.

    Raises:
        InputError: More are asked for than the data order has lanes.
    """
    lanes, asked = config.data.num_lanes(), config.scale.worker_range()
    if asked is not None:
        check_lanes(config, asked[1])
        return asked
    found = (
        workers_that_fit(nodes, each) if "GPU" in each else sum(workers_that_fit([node], each) > 0 for node in nodes)
    )
    count = max(1, min(found, lanes))
    if count < found:
        say(
            f"The cluster has room for {found} workers, but the data order has {lanes} lanes (data.lanes, a divisor of "
            f"data.global_batch_size {config.data.global_batch_size}): training with {count}."
        )
    return count, count


def wait_for_resources(
    workers: int, each: Resources, strategy: str, say: Say, idle_seconds: float = _IDLE_SECONDS
) -> None:
    """Return when `workers` can be placed; while machines are busy or an autoscaler adds some, wait and say for what.

    Args:
        workers: The fewest that training can start with.
        each: What one takes.
        strategy: Of placement, PACK or SPREAD.
        say: Takes a line.
        idle_seconds: How long the autoscaler may do nothing before this gives up.

    Raises:
        InputError: They can never be placed: the machines are too few or too small, and none are being added.
    """
    nodes, state = alive_nodes(), autoscaler_state()
    if workers_that_fit(nodes, each) < workers:
        _check_autoscaler_limits(workers, each, nodes, state)
    if workers_that_fit([ray.available_resources()], each) >= workers and workers_that_fit(nodes, each) >= workers:
        return
    what, there = format_request(workers, each), format_inventory(nodes, each)
    why = "some are in use" if workers_that_fit(nodes, each) >= workers else "the autoscaler is asked for more"
    say(f"Waiting for room: {what} are asked for; there are {there}, and {why}.")
    group = placement_group([dict(each)] * workers, strategy=strategy)  # the demand that Ray Train itself will have
    try:
        _wait_for_placement(group, workers, each, say, idle_seconds)
    finally:
        remove_placement_group(group)


def _check_autoscaler_limits(
    workers: int, each: Resources, nodes: list[Resources], state: AutoscalerState | None
) -> None:
    """Raise InputError if no machines can be added, or too few."""
    begin = f"The run needs {format_request(workers, each)}, but the Ray cluster has {format_inventory(nodes, each)}"
    fix = "lower scale.workers, scale.cpus_per_worker or scale.gpus_per_worker, or add machines."
    if state is None:
        raise InputError(f"{begin}: {fix}")
    most = workers_after_growth(_read_autoscaler_config(), each)
    if most is not None and most < workers:
        raise InputError(f"{begin}, and its autoscaler may add machines for {most} such workers in all: {fix}")


def _wait_for_placement(group: Any, workers: int, each: Resources, say: Say, idle_seconds: float) -> None:
    active = said = time.monotonic()
    before: object = None
    while not group.wait(_POLL_SECONDS):
        now, nodes, state = time.monotonic(), alive_nodes(), autoscaler_state()
        if workers_that_fit(nodes, each) >= workers or (state, len(nodes)) != before or (state and state.adding):
            active = now  # others will be done some time; machines are coming
        before = (state, len(nodes))
        if state is not None and (state.refuses or now - active > idle_seconds):
            raise InputError(
                f"The run needs {format_request(workers, each)}, the Ray cluster has {format_inventory(nodes, each)}, "
                f"and its autoscaler {'says that it cannot place them' if state.refuses else 'adds no more'}: "
                "lower scale.workers, scale.cpus_per_worker or scale.gpus_per_worker, or raise the cluster's limits."
            )
        if now - said > _SAY_SECONDS:
            said = now
            coming = f"; {state.adding} are being added" if state and state.adding else ""
            say(
                f"Still waiting for {format_request(workers, each)}; there are {format_inventory(nodes, each)}{coming}."
            )


@dataclass(frozen=True, slots=True)
class AutoscalerState:
    """What the cluster's autoscaler does.

    Args:
        adding: Machines that it has asked for and that are not there yet.
        refuses: Whether it knows that a demand can never be met; only the newer one (Kubernetes) says so.
    """

    adding: int
    refuses: bool


def autoscaler_state() -> AutoscalerState | None:
    """The state of the autoscaler that may add machines to this cluster; None where machines are fixed."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]
    from ray.experimental.internal_kv import _internal_kv_get

    gcs = GcsClient(ray.get_runtime_context().gcs_address)
    if is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs):
        reply = GetClusterStatusReply()
        reply.ParseFromString(gcs.get_cluster_status(timeout_s=10))
        newer = reply.autoscaling_state
        coming = sum(request.request_count or 1 for request in newer.pending_instance_requests)
        refused = [*newer.infeasible_resource_requests, *newer.infeasible_gang_resource_requests]
        return AutoscalerState(coming + len(newer.pending_instances), bool(refused))
    report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    kinds = {**(report.get("active_nodes") or {}), **(report.get("idle_nodes") or {})}
    if all(kind.startswith("node_") for kind in kinds):  # the names of machines that nobody described
        return None
    launching = sum((report.get("pending_launches") or {}).values())
    return AutoscalerState(launching + len(report.get("pending_nodes") or []), False)


def threads_per_worker() -> int:
    """CPU threads for a Ray Train worker: the cores that Ray sees on its machine, shared out to the workers there."""
    here = ray.get_runtime_context().get_node_id()
    cores = next((node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == here), 1.0)
    return max(1, int(cores) // ray.train.get_context().get_local_world_size())


def use_node_interface() -> None:
    """Let gloo listen where Ray does, if nobody has said where.

    Else it takes the address that this machine's own name stands for, which is often 127.0.0.1.
    """
    name = find_interface(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def find_interface(address: str) -> str | None:
    """The network interface with this IPv4 address; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                if socket.inet_ntoa(fcntl.ioctl(probe, _GET_ADDRESS, request)[20:24]) == address:
                    return name
    return None
