"""How many workers fit onto the machines of a cluster, and the sentences for when they do not.

The only arithmetic of what fits where: training runs and sweeps both ask it. Pure; knows no Ray. Machines ("nodes")
and workers are described as Ray describes them, by amounts of CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ali_dist.config import Config
from ali_dist.config.wording import format_count
from ali_dist.errors import InputError

Resources = Mapping[str, float]
"""Amounts by kind of resource, as Ray names them, e.g. {"CPU": 8.0, "GPU": 2.0}."""

_ROUNDING = 1e-6  # fractions are floats: 0.3 / 0.1 is 2.9999999999999996


def worker_resources(cpus: float, gpus: float) -> dict[str, float]:
    """What one worker takes; a worker that trains on the CPU takes no GPU at all.

    Args:
        cpus: CPUs of the worker.
        gpus: GPUs of the worker; 0 on the CPU.
    """
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def workers_that_fit(nodes: Sequence[Resources], per_worker: Resources) -> int:
    """How many workers the nodes hold together; each worker lies on one node, and less than a GPU on one GPU.

    Args:
        nodes: Resources of every node.
        per_worker: What each worker takes.
    """
    return sum(_workers_on_node(node, per_worker) for node in nodes)


def _workers_on_node(node: Resources, per_worker: Resources) -> int:
    return min(_workers_by_kind(kind, node.get(kind, 0.0), amount) for kind, amount in per_worker.items())


def _workers_by_kind(kind: str, available: float, per_worker: float) -> int:
    if kind != "GPU" or per_worker >= 1:
        return int(available / per_worker + _ROUNDING)
    # A worker with a fraction of a GPU lies on one GPU: two GPUs hold 2 workers of 0.6, although 2 / 0.6 is above 3.
    whole_gpus = int(available + _ROUNDING)
    rest = max(0.0, available - whole_gpus)
    return whole_gpus * int(1 / per_worker + _ROUNDING) + int(rest / per_worker + _ROUNDING)


def workers_after_growth(autoscaling: Mapping[str, Any], per_worker: Resources) -> int | None:
    """How many workers fit when an autoscaler has added all that its configuration lets it add.

    Args:
        autoscaling: The complete configuration of Ray's cluster launcher, as it lies on the head.
        per_worker: What each worker takes.

    Returns:
        The number, or None where the configuration does not say what its machines have.
    """
    node_types = autoscaling.get("available_node_types", {})
    limit = autoscaling.get("max_workers", 0)
    head = node_types.get(autoscaling.get("head_node_type"), {}).get("resources")
    addable = [(node_type.get("resources"), node_type.get("max_workers", limit)) for node_type in node_types.values()]
    if not node_types or head is None or any(count and not resources for resources, count in addable):
        return None
    by_size = sorted(
        ((_workers_on_node(resources, per_worker), count) for resources, count in addable if count), reverse=True
    )
    total = _workers_on_node(head, per_worker)
    nodes_left = limit
    for workers, count in by_size:
        added = min(count, nodes_left)
        total += workers * added
        nodes_left -= added
    return total


def offers_resource(autoscaling: Mapping[str, Any], kind: str) -> bool:
    """Whether a machine that the autoscaler may add has any of a kind of resource."""
    node_types = autoscaling.get("available_node_types", {}).values()
    return any(
        (node_type.get("resources") or {}).get(kind) and node_type.get("max_workers") != 0 for node_type in node_types
    )


def check_lanes(config: Config, workers: int, option: str = "scale.workers") -> None:
    """Refuse more workers than the order of the data has lanes.

    Args:
        config: The config of the run, or of each trial of a sweep.
        workers: The most that one run or trial has.
        option: What the user sets their number with.

    Raises:
        InputError: There are more workers than lanes.
    """
    lanes = config.data.num_lanes()
    if workers > lanes:
        raise InputError(
            f"{option} asks for {workers} workers, but the data order has {format_count(lanes, 'lane')} (data.lanes, "
            f"a divisor of data.global_batch_size {config.data.global_batch_size}): use at most "
            f"{format_count(lanes, 'worker')} or more lanes."
        )


def format_request(workers: int, per_worker: Resources) -> str:
    """What the workers ask for, in words."""
    return f"{workers} worker{'s' * (workers != 1)} with {_format_amounts(per_worker)} each"


def format_inventory(nodes: Sequence[Resources], per_worker: Resources) -> str:
    """What the nodes have of the resources that a worker takes, in words; equal nodes are counted together."""
    counts: dict[str, int] = {}
    for node in nodes:
        amounts = _format_amounts({kind: node.get(kind, 0.0) for kind in per_worker})
        counts[amounts] = counts.get(amounts, 0) + 1
    parts = [f"{count} machine{'s' * (count != 1)} with {amounts}" for amounts, count in counts.items()]
    return " and ".join(parts) or "no machines"


def _format_amounts(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
