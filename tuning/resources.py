"""How many trials fit on a cluster at once. Pure arithmetic: Ray Tune does not know what a trial's workers need.

A trial's driver needs nothing; each of its workers needs `Need` on one machine. So the number of workers that fit is
counted machine by machine, and trials at once are that number divided by the workers of a trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ali_dist.errors import InputError

_SLACK = 1e-6  # Ray counts in units of 1e-4: three times a third of a GPU is a whole one


@dataclass(frozen=True, slots=True)
class TrialResources:
    """What one trial asks for.

    Attributes:
        workers: Processes of a trial; 1: the trial trains in its own process.
        cpus: CPUs of each.
        gpus: GPUs of each; 0: trains on the CPU.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def each(self) -> dict[str, float]:
        """Resources of one worker, as Ray names them."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def whole(self) -> dict[str, float]:
        """Resources of all its workers."""
        return {kind: self.workers * amount for kind, amount in self.each().items()}


def resources_for_trial(
    nodes: Sequence[Mapping[str, float]],
    *,
    gpus_per_trial: float | None,
    workers_per_trial: int | None,
    cpus_per_worker: float,
    device: str,
) -> TrialResources:
    """What a trial needs, from what was asked for and what is there.

    Args:
        nodes: Resources of every machine.
        gpus_per_trial: As asked: up to 1 for one process, a whole number for as many processes.
        workers_per_trial: As asked; each has a whole GPU where there are GPUs.
        cpus_per_worker: CPUs of each process.
        device: `scale.device`: auto, cpu or cuda.

    Raises:
        InputError: The two numbers contradict each other or the device.
    """
    if gpus_per_trial is not None and workers_per_trial is not None:
        raise InputError("--gpus-per-trial and --workers-per-trial are two ways to say it: give one of them.")
    if device == "cpu" and gpus_per_trial:
        raise InputError(f"--gpus-per-trial is {gpus_per_trial:g}, but scale.device is 'cpu': leave one of them out.")
    there = any(node.get("GPU", 0) > 0 for node in nodes)
    gpus_wanted = gpus_per_trial != 0 and (
        device == "cuda" or gpus_per_trial is not None or (device == "auto" and there)
    )
    if not gpus_wanted:
        return TrialResources(workers_per_trial or 1, cpus_per_worker, 0.0)
    if gpus_per_trial is None or gpus_per_trial <= 1:
        return TrialResources(workers_per_trial or 1, cpus_per_worker, gpus_per_trial or 1.0)
    if gpus_per_trial != int(gpus_per_trial):
        raise InputError(f"--gpus-per-trial is {gpus_per_trial:g}, but above 1 it must be a whole number.")
    return TrialResources(int(gpus_per_trial), cpus_per_worker, 1.0)


def check_lanes(workers: int, lanes: int) -> None:
    """Refuse more workers in a trial than its order of data has lanes.

    Raises:
        InputError: With both numbers.
    """
    if workers > lanes:
        raise InputError(
            f"A trial has {workers} workers, but the data order has {lanes} lanes (data.lanes, a divisor of "
            f"data.global_batch_size): lower --workers-per-trial or --gpus-per-trial to {lanes}, or raise data.lanes."
        )


def trials_at_once(nodes: Sequence[Mapping[str, float]], need: TrialResources, trials: int) -> int:
    """Trials that run at once, at least 1 and at most `trials`.

    Args:
        nodes: Resources of every machine, as Ray names them.
        need: Of a trial.
        trials: That are left to run.

    Raises:
        InputError: Not even one trial fits; the sentence has the sum.
    """
    each = need.each()
    room = sum(
        min(_fitting_count(node.get(kind, 0.0), amount, kind) for kind, amount in each.items()) for node in nodes
    )
    if room < need.workers:
        wanted = " and ".join(
            f"{need.workers} x {amount:g} = {need.workers * amount:g} {k}" for k, amount in each.items()
        )
        have = " and ".join(f"{sum(node.get(kind, 0.0) for node in nodes):g} {kind}" for kind in each)
        raise InputError(
            f"One trial needs {wanted}, but the cluster has {have} on {len(nodes)} machine{'s' * (len(nodes) != 1)}, "
            f"room for {room} of {need.workers} worker{'s' * (need.workers != 1)}: lower --workers-per-trial, "
            "--gpus-per-trial or scale.cpus_per_worker, or add machines."
        )
    return max(1, min(room // need.workers, trials))


def _fitting_count(there: float, amount: float, kind: str) -> int:
    """How often `amount` fits into what a machine has. Less than a GPU lies on one GPU: 2 GPUs hold 2 x 0.6, not 3."""
    if kind == "GPU" and amount < 1:
        return int(there + _SLACK) * int(1 / amount + _SLACK)
    return int(there / amount + _SLACK)
