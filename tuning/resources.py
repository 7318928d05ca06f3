"""What each trial of a sweep asks for, and how many trials run at once. Pure.

Ray Tune does not know what the workers of a trial need: the trial's own process (its driver) holds nothing, and Ray
Train reserves the workers later. So the workers that fit are counted here, by the arithmetic of
`ali_dist.launchers.resources`, and the trials at once are that number divided by the workers of a trial. Without it,
two trials could each hold half of the cluster and wait for each other forever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ali_dist.errors import InputError
from ali_dist.launchers.resources import Resources, worker_resources, workers_that_fit


@dataclass(frozen=True, slots=True)
class TrialResources:
    """What one trial asks for.

    Attributes:
        workers: Processes that train; with 1, the trial trains in its own process.
        cpus: CPUs of each worker.
        gpus: GPUs of each worker; 0 trains on the CPU.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def per_worker(self) -> dict[str, float]:
        """Resources of one worker, as Ray names them."""
        return worker_resources(self.cpus, self.gpus)

    def total(self) -> dict[str, float]:
        """Resources of all workers of the trial together."""
        return {kind: self.workers * amount for kind, amount in self.per_worker().items()}


def resources_for_trial(
    nodes: Sequence[Resources],
    *,
    gpus_per_trial: float | None,
    workers_per_trial: int | None,
    cpus_per_worker: float,
    device: str,
) -> TrialResources:
    """What a trial takes, from the options of the sweep and what the cluster has.

    Args:
        nodes: Resources of every machine.
        gpus_per_trial: The option: up to 1 for one process, a whole number for as many processes; None: not given.
        workers_per_trial: The option; each worker has a whole GPU where there are GPUs; None: not given.
        cpus_per_worker: CPUs of each process.
        device: `scale.device`: auto, cpu or cuda.

    Raises:
        InputError: The options contradict each other or the device, or the number of GPUs is not possible.
    """
    check_trial_options(gpus_per_trial, workers_per_trial)
    if device == "cpu" and gpus_per_trial:
        raise InputError(f"--gpus-per-trial is {gpus_per_trial:g}, but scale.device is 'cpu': leave one of them out.")
    cluster_has_gpus = any(node.get("GPU", 0) > 0 for node in nodes)
    use_gpus = gpus_per_trial != 0 and (
        device == "cuda" or gpus_per_trial is not None or (device == "auto" and cluster_has_gpus)
    )
    if not use_gpus:
        return TrialResources(workers_per_trial or 1, cpus_per_worker, 0.0)
    if gpus_per_trial is None or gpus_per_trial <= 1:
        return TrialResources(workers_per_trial or 1, cpus_per_worker, gpus_per_trial or 1.0)
    return TrialResources(int(gpus_per_trial), cpus_per_worker, 1.0)


def check_trial_options(gpus_per_trial: float | None, workers_per_trial: int | None) -> None:
    """Refuse what no cluster could make of the two options that say how large a trial is.

    Raises:
        InputError: Both are given, or a number of GPUs above 1 that is not whole.
    """
    if gpus_per_trial is not None and workers_per_trial is not None:
        raise InputError("--gpus-per-trial and --workers-per-trial are two ways to say it: give one of them.")
    if gpus_per_trial is not None and gpus_per_trial > 1 and gpus_per_trial != int(gpus_per_trial):
        raise InputError(f"--gpus-per-trial is {gpus_per_trial:g}, but above 1 it must be a whole number.")


def count_trials_at_once(nodes: Sequence[Resources], resources: TrialResources, trials: int) -> int:
    """How many trials run at once, at least 1 and at most `trials`.

    Args:
        nodes: Resources of every machine.
        resources: What each trial takes.
        trials: How many are left to run.

    Raises:
        InputError: Not even one trial fits; the sentence shows the sum.
    """
    per_worker = resources.per_worker()
    workers = resources.workers
    fitting_workers = workers_that_fit(nodes, per_worker)
    if fitting_workers < workers:
        needed = " and ".join(f"{workers} x {amount:g} = {workers * amount:g} {k}" for k, amount in per_worker.items())
        available = " and ".join(f"{sum(node.get(kind, 0.0) for node in nodes):g} {kind}" for kind in per_worker)
        raise InputError(
            f"One trial needs {needed}, but the cluster has {available} on {len(nodes)} "
            f"machine{'s' * (len(nodes) != 1)}, room for {fitting_workers} of {workers} worker{'s' * (workers != 1)}: "
            "lower --workers-per-trial, --gpus-per-trial or scale.cpus_per_worker, or add machines."
        )
    return max(1, min(fitting_workers // workers, trials))
