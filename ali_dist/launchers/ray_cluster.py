"""The Ray cluster of a run: how to reach it, how many workers the run gets, and whether there is room for them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from ali_dist.config import Config
from ali_dist.config.wording import format_count
from ali_dist.errors import InputError
from ali_dist.launchers.environment import temporary_environment
from ali_dist.launchers.ray_lines import WriteLine, controller_shown, show_without_rays_own
from ali_dist.launchers.ray_own_cluster import OWN_CLUSTER_ENVIRONMENT, our_sigterm_kept, start_own_cluster
from ali_dist.launchers.resources import (
    Resources,
    check_lanes,
    format_inventory,
    format_request,
    offers_resource,
    workers_after_growth,
    workers_that_fit,
)

# `ray up` leaves the configuration of its autoscaler on the head, where the drivers of jobs run, too.
_AUTOSCALER_CONFIG = Path("~/ray_bootstrap_config.yaml")
_IDLE_SECONDS = 45.0  # an autoscaler that has done nothing for so long will do nothing
_POLL_SECONDS = 2.0
_ANSWER_SECONDS = 20.0  # for a cluster's head to answer
_CONNECT_SECONDS = 10.0
_PROGRESS_SECONDS = 60.0
_SIOCGIFADDR = 0x8915  # Linux's request for the address of a network interface
_LOWER = "lower scale.workers, scale.cpus_per_worker or scale.gpus_per_worker"
RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}


@contextlib.contextmanager
def ray_session(config: Config, write_line: WriteLine) -> Iterator[bool]:
    """Within the block, this process is connected to a Ray cluster; one that is connected already stays so.

    The cluster is that of the job or of RAY_ADDRESS, or one that `ray start` left on this machine. Where there is
    none, a local one with room for the workers is started, and ends with the block. It has no dashboard, whose eleven
    processes would make the start longer; what Ray Train asks there matters to clusters that outlive a run.

    Args:
        config: The config of the run.
        write_line: Gets a sentence when a worker is lost.

    Yields:
        Whether the cluster was started here and ends with the block.

    Raises:
        InputError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield False
        return
    with temporary_environment(defaults=RAY_ENVIRONMENT):
        options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}  # no words on its own start
        is_own = False
        if os.environ.get("RAY_ADDRESS"):
            connect_to_ray(**options)
        else:
            _, most_workers = config.scale.worker_range() or (1, 1)
            cpus_needed = math.ceil(most_workers * config.scale.cpus_per_worker)
            try:
                cpus = max(os.cpu_count() or 1, cpus_needed)
                start_own_cluster(cpus, most_workers, **options)
                is_own = True
            except ValueError:  # Ray found a cluster of `ray start`, whose CPUs are not ours to choose
                connect_to_ray(**options)
        logging.getLogger("ray").setLevel(logging.WARNING)
        show_without_rays_own(write_line, keeps_places=not is_own)
        try:
            if is_own:
                with temporary_environment(defaults=OWN_CLUSTER_ENVIRONMENT), controller_shown(write_line):
                    yield True
            else:
                yield False
        finally:
            ray.shutdown()


def connect_to_ray(**options: Any) -> None:
    """Call `ray.init`; where RAY_ADDRESS names a cluster, find out before whether anybody answers there.

    Ray itself would try for many minutes, and write of nothing but its own processes.

    Args:
        options: Those of `ray.init`.

    Raises:
        InputError: Nobody does, within `_ANSWER_SECONDS`, or there is no such cluster.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        reason = _why_unreachable(host.strip("[]"), int(port))
        if reason:
            raise _no_cluster_error(address, reason)
    try:
        with our_sigterm_kept():
            ray.init(**options)
    except ConnectionError as error:
        place = re.search(r"([^\s/]+):(\d+)", str(error))
        if place and not _why_unreachable(place[1], int(place[2])):
            raise InputError(
                f"A Ray cluster answers at {place[0]}, but does not let this process in: if it asks for a token, set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as where it was started; else its version of Ray may differ."
            ) from error
        raise _no_cluster_error(address, " ".join(str(error).split())[:200]) from error


def _no_cluster_error(address: str, reason: str) -> InputError:
    named = f"RAY_ADDRESS is {address!r}, but no Ray cluster answers there" if address else "There is no Ray cluster"
    return InputError(
        f"{named} ({reason.rstrip('.')}): start it or correct the address, or unset RAY_ADDRESS to run on this machine."
    )


def _why_unreachable(host: str, port: int) -> str:
    """Why no connection can be made, tried for a while, because a head may be about to start; empty if one can be."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            with socket.create_connection((host, port), timeout=_CONNECT_SECONDS):
                return ""
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                return str(getattr(error, "strerror", None) or error)
        time.sleep(1)


def alive_nodes() -> list[Resources]:
    """The resources of each machine that is there now."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def _read_autoscaler_config() -> dict[str, Any]:
    """The autoscaler's configuration; empty if there is none, or none on this machine."""
    file = _AUTOSCALER_CONFIG.expanduser()
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return config


def has_gpus(*, may_grow: bool = True) -> bool:
    """Whether the cluster has GPUs, or gets some when they are asked for.

    Args:
        may_grow: Whether to ask for an autoscaler at all.
    """
    if ray.cluster_resources().get("GPU", 0) > 0:
        return True
    return may_grow and autoscaler_state() is not None and offers_resource(_read_autoscaler_config(), "GPU")


def choose_workers(
    config: Config, nodes: list[Resources], per_worker: Resources, write_line: WriteLine
) -> tuple[int, int]:
    """Choose how many workers a run gets.

    Args:
        config: The config of the run. `scale.workers` decides; with `auto`, there is a worker for each GPU of the
            cluster, or on CPUs for each machine that has room for one, and no more than the data order has lanes.
        nodes: Resources of every machine.
        per_worker: What each worker takes.
        write_line: Gets a sentence if there is room for more workers than lanes.

    Returns:
        The fewest workers that training can start with, and the most.

    Raises:
        InputError: The user asks for more workers than the data order has lanes.
    """
    worker_range = config.scale.worker_range()
    if worker_range is not None:
        check_lanes(config, worker_range[1])
        return worker_range
    if "GPU" in per_worker:
        fitting = workers_that_fit(nodes, per_worker)
    else:
        fitting = sum(workers_that_fit([node], per_worker) > 0 for node in nodes)
    lanes = config.data.num_lanes()
    workers = max(1, min(fitting, lanes))
    if workers < fitting:
        write_line(
            f"The cluster has room for {fitting} workers, but the data order has {format_count(lanes, 'lane')} "
            f"(data.lanes, a divisor of data.global_batch_size {config.data.global_batch_size}): training with "
            f"{workers}."
        )
    return workers, workers


def wait_for_resources(
    workers: int, per_worker: Resources, strategy: str, write_line: WriteLine, idle_seconds: float = _IDLE_SECONDS
) -> None:
    """Return when the workers can be placed; while machines are busy or an autoscaler adds some, wait and say so.

    Args:
        workers: The fewest that training can start with.
        per_worker: What each worker takes.
        strategy: Ray's strategy of placement, PACK or SPREAD.
        write_line: Gets a sentence now and then.
        idle_seconds: How long the autoscaler may do nothing before this gives up.

    Raises:
        InputError: They can never be placed: the machines are too few or too small, and none are being added.
    """
    nodes = alive_nodes()
    fit_when_idle = workers_that_fit(nodes, per_worker) >= workers
    if not fit_when_idle:
        _check_autoscaler_limits(workers, per_worker, nodes, autoscaler_state())
    elif workers_that_fit([ray.available_resources()], per_worker) >= workers:
        return
    reason = "some are in use" if fit_when_idle else "the autoscaler is asked for more"
    write_line(
        f"Waiting for room: {format_request(workers, per_worker)} are asked for; "
        f"there are {format_inventory(nodes, per_worker)}, and {reason}."
    )
    # It is the same demand as Ray Train itself will have, so that the autoscaler meets it.
    group = placement_group([dict(per_worker)] * workers, strategy=strategy)
    try:
        _wait_for_placement(group, workers, per_worker, write_line, idle_seconds)
    finally:
        remove_placement_group(group)


def _check_autoscaler_limits(
    workers: int, per_worker: Resources, nodes: list[Resources], state: AutoscalerState | None
) -> None:
    """Raise InputError if no machines can be added, or too few."""
    request = format_request(workers, per_worker)
    sentence = f"The run needs {request}, but the Ray cluster has {format_inventory(nodes, per_worker)}"
    remedy = f"{_LOWER}, or add machines."
    if state is None:
        raise InputError(f"{sentence}: {remedy}")
    most_workers = workers_after_growth(_read_autoscaler_config(), per_worker)
    if most_workers is not None and most_workers < workers:
        raise InputError(
            f"{sentence}, and its autoscaler may add machines for {most_workers} such workers in all: {remedy}"
        )


def _wait_for_placement(
    group: Any, workers: int, per_worker: Resources, write_line: WriteLine, idle_seconds: float
) -> None:
    last_active = time.monotonic()
    last_line = last_active
    previous: object = None
    request = format_request(workers, per_worker)
    while not group.wait(_POLL_SECONDS):
        now = time.monotonic()
        nodes = alive_nodes()
        state = autoscaler_state()
        fit_when_idle = workers_that_fit(nodes, per_worker) >= workers  # then others will be done some time
        if fit_when_idle or (state, len(nodes)) != previous or (state and state.adding):
            last_active = now
        previous = (state, len(nodes))
        if state is not None and (state.refuses or now - last_active > idle_seconds):
            reason = "says that it cannot place them" if state.refuses else "adds no more"
            raise InputError(
                f"The run needs {request}, the Ray cluster has {format_inventory(nodes, per_worker)}, and its "
                f"autoscaler {reason}: {_LOWER}, or raise the cluster's limits."
            )
        if now - last_line > _PROGRESS_SECONDS:
            last_line = now
            coming = f"; {state.adding} are being added" if state and state.adding else ""
            write_line(f"Still waiting for {request}; there are {format_inventory(nodes, per_worker)}{coming}.")


@dataclass(frozen=True, slots=True)
class AutoscalerState:
    """What the cluster's autoscaler does.

    Attributes:
        adding: Machines that it has asked for and that are not there yet.
        refuses: Whether it knows that a demand can never be met; only the newer autoscaler (on Kubernetes) says so.
    """

    adding: int
    refuses: bool


def autoscaler_state() -> AutoscalerState | None:
    """The state of the autoscaler that may add machines to this cluster; None where machines are fixed."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.autoscaler.v2.utils import is_autoscaler_v2

    gcs_client = GcsClient(ray.get_runtime_context().gcs_address)
    if is_autoscaler_v2(fetch_from_server=True, gcs_client=gcs_client):
        return _newer_autoscaler_state(gcs_client)
    return _older_autoscaler_state()


def _newer_autoscaler_state(gcs_client: Any) -> AutoscalerState:
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply  # type: ignore[attr-defined]

    reply = GetClusterStatusReply()
    reply.ParseFromString(gcs_client.get_cluster_status(timeout_s=10))
    state = reply.autoscaling_state
    requested = sum(request.request_count or 1 for request in state.pending_instance_requests)
    refused = [*state.infeasible_resource_requests, *state.infeasible_gang_resource_requests]
    return AutoscalerState(requested + len(state.pending_instances), bool(refused))


def _older_autoscaler_state() -> AutoscalerState | None:
    from ray.experimental.internal_kv import _internal_kv_get

    report = json.loads(_internal_kv_get("__autoscaling_status") or b"{}").get("autoscaler_report") or {}
    node_types = {**(report.get("active_nodes") or {}), **(report.get("idle_nodes") or {})}
    if all(name.startswith("node_") for name in node_types):  # the names of machines that nobody described
        return None
    launching = sum((report.get("pending_launches") or {}).values())
    return AutoscalerState(launching + len(report.get("pending_nodes") or []), False)


def threads_per_worker() -> int:
    """CPU threads for a Ray Train worker: the cores that Ray sees on its machine, shared out to the workers there."""
    from ray.train import get_context  # seconds that a driver has better use for

    this_node = ray.get_runtime_context().get_node_id()
    cores = next((node["Resources"].get("CPU", 1.0) for node in ray.nodes() if node["NodeID"] == this_node), 1.0)
    return max(1, int(cores) // get_context().get_local_world_size())


def use_node_interface() -> None:
    """Let gloo listen on the network that Ray uses, unless the user has named another one. For a worker's process.

    Otherwise gloo takes the address that this machine's own name stands for, which is often 127.0.0.1.
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
                if socket.inet_ntoa(fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24]) == address:
                    return name
    return None
