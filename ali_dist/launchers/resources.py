"""Whether workers fit onto the machines of a cluster, and sentences for when they do not. Arithmetic; knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Resources = Mapping[str, float]
_ROUNDING = 1e-6  # fractions of a GPU are floats


def workers_that_fit(nodes: Sequence[Resources], each: Resources) -> int:
    """How many workers that take `each` fit onto nodes with these resources; a worker lies on one node."""
    return sum(_workers_on_node(node, each) for node in nodes)


def _workers_on_node(node: Resources, each: Resources) -> int:
    return min(int(node.get(kind, 0.0) / amount + _ROUNDING) for kind, amount in each.items())


def workers_after_growth(autoscaling: Mapping[str, Any], each: Resources) -> int | None:
    """How many workers fit when an autoscaler has added all that its configuration lets it add.

    Args:
        autoscaling: The configuration of Ray's cluster launcher, complete, as it lies on the head.
        each: What a worker takes.

    Returns:
        The number, or None where the configuration does not say what its machines have.
    """
    types, limit = autoscaling.get("available_node_types", {}), autoscaling.get("max_workers", 0)
    head = types.get(autoscaling.get("head_node_type"), {}).get("resources")
    workers = [(kind.get("resources"), kind.get("max_workers", limit)) for kind in types.values()]
    if not types or head is None or any(count and not resources for resources, count in workers):
        return None
    found = sorted(((_workers_on_node(resources, each), count) for resources, count in workers if count), reverse=True)
    total, left = _workers_on_node(head, each), limit
    for fitting, count in found:
        total += fitting * min(count, left)
        left -= min(count, left)
    return total


def offers_resource(autoscaling: Mapping[str, Any], kind: str) -> bool:
    """Whether a machine that the autoscaler may add has any of a kind of resource."""
    types = autoscaling.get("available_node_types", {}).values()
    return any((machine.get("resources") or {}).get(kind) and machine.get("max_workers") != 0 for machine in types)


def format_request(workers: int, each: Resources) -> str:
    """What workers ask for, in words."""
    return f"{workers} worker{'s' * (workers != 1)} with {_format_amounts(each)} each"


def format_inventory(nodes: Sequence[Resources], each: Resources) -> str:
    """What of it the nodes have, in words: equal nodes together."""
    kinds: dict[str, int] = {}
    for node in nodes:
        what = _format_amounts({kind: node.get(kind, 0.0) for kind in each})
        kinds[what] = kinds.get(what, 0) + 1
    parts = [f"{count} machine{'s' * (count != 1)} with {what}" for what, count in kinds.items()]
    return " and ".join(parts) or "no machines"


def _format_amounts(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
