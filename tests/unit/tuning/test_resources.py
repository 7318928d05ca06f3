"""Trials at once: those that start always fit, machine by machine, and one that never fits is refused with the sum."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ali_dist.errors import InputError
from tuning.resources import TrialResources, count_trials_at_once, resources_for_trial

MACHINES = st.lists(
    st.fixed_dictionaries({"CPU": st.integers(0, 16).map(float), "GPU": st.integers(0, 8).map(float)}),
    min_size=1,
    max_size=5,
)
TRIALS = st.builds(
    TrialResources,
    workers=st.integers(1, 6),
    cpus=st.sampled_from([0.5, 1.0, 2.0, 3.0]),
    gpus=st.sampled_from([0.0, 0.25, 0.3, 0.5, 0.6, 1.0]),
)


def place_worker(room, resources) -> bool:
    """Put one worker on the first machine that has room for it, as Ray does: less than a GPU lies on one GPU."""
    for machine in room:
        free = (
            [k for k, gpu in enumerate(machine["gpus"]) if gpu >= min(resources.gpus, 1) - 1e-6]
            if resources.gpus
            else []
        )
        if machine["cpus"] >= resources.cpus - 1e-9 and (free or not resources.gpus):
            machine["cpus"] -= resources.cpus
            if resources.gpus:
                machine["gpus"][free[0]] -= resources.gpus
            return True
    return False


def free_resources(nodes):
    return [{"cpus": node.get("CPU", 0.0), "gpus": [1.0] * int(node.get("GPU", 0))} for node in nodes]


@given(MACHINES, TRIALS, st.integers(1, 20))
def test_trials_that_run_at_once_can_be_placed_worker_by_worker(nodes, resources, trials):
    """No deadlock: workers are put greedily on machines, none is split over two."""
    try:
        at_once = count_trials_at_once(nodes, resources, trials)
    except InputError:
        at_once = 0
    room = free_resources(nodes)
    assert all(place_worker(room, resources) for _ in range(at_once * resources.workers))
    one_more_fits = all(place_worker(room, resources) for _ in range(resources.workers))
    assert at_once == trials or not one_more_fits, "room for another trial was left unused"


def test_no_combination_of_options_on_two_cpus_leaves_a_trial_waiting_forever():
    """Every pair of options and the settings beside them, on machines of up to two CPUs and GPUs: placed or refused."""
    combinations = itertools.product(
        (None, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
        (None, 1, 2, 3),
        (0.25, 0.5, 1.0, 1.5, 2.0, 3.0),
        ("auto", "cpu", "cuda"),
    )
    clusters = [[{"CPU": 2.0}], [{"CPU": 2.0, "GPU": 1.0}], [{"CPU": 2.0, "GPU": 2.0}], [{"CPU": 1.0}, {"CPU": 1.0}]]
    clusters += [[{"CPU": 0.0}, {"CPU": 2.0}], [{}, {"CPU": 1.0, "GPU": 1.0}]]
    placed = refused = 0
    combinations = list(combinations)
    for (gpus, workers, cpus, device), nodes in itertools.product(combinations, clusters):
        try:
            resources = resources_for_trial(
                nodes, gpus_per_trial=gpus, workers_per_trial=workers, cpus_per_worker=cpus, device=device
            )
            at_once = count_trials_at_once(nodes, resources, 12)
        except InputError as error:
            refused += "per-trial" in str(error)  # the message names what to change
            continue
        room = free_resources(nodes)
        assert all(place_worker(room, resources) for _ in range(at_once * resources.workers)), (
            nodes,
            resources,
            at_once,
        )
        assert resources.gpus > 0 or device != "cuda" or gpus == 0
        assert workers is None or resources.workers == workers
        placed += 1
    assert placed + refused == len(combinations) * len(clusters)
    assert min(placed, refused) > 300, "one of the two outcomes was hardly tried"


def test_cpus_of_several_machines_do_not_add_up_to_one_worker():
    with pytest.raises(InputError, match="room for 0 of 1 worker"):
        count_trials_at_once([{"CPU": 2.0}, {"CPU": 2.0}], TrialResources(cpus=3.0), 4)


def test_a_refusal_shows_the_sum():
    with pytest.raises(
        InputError, match=r"3 x 1 = 3 CPU and 3 x 1 = 3 GPU, but the cluster has 8 CPU and 2 GPU on 1 machine,"
    ):
        count_trials_at_once([{"CPU": 8.0, "GPU": 2.0}], TrialResources(3, 1.0, 1.0), 1)


@pytest.mark.parametrize(("gpus", "share", "trials"), [(1, 0.3333, 3), (2, 0.6, 2), (1, 0.5, 2), (4, 0.3, 12)])
def test_a_trial_with_a_fraction_of_a_gpu_lies_on_one_gpu(gpus, share, trials):
    """Two GPUs hold two trials of 0.6 GPU, although 2 / 0.6 is above 3."""
    assert count_trials_at_once([{"CPU": 16.0, "GPU": gpus}], TrialResources(1, 1.0, share), 20) == trials


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, TrialResources(1, 1.0, 1.0)),
        ({"gpus_per_trial": 0.0}, TrialResources(1, 1.0, 0.0)),
        ({"gpus_per_trial": 0.5}, TrialResources(1, 1.0, 0.5)),
        ({"gpus_per_trial": 2.0}, TrialResources(2, 1.0, 1.0)),
        ({"workers_per_trial": 3}, TrialResources(3, 1.0, 1.0)),
        ({"workers_per_trial": 3, "device": "cpu"}, TrialResources(3, 1.0, 0.0)),
        ({"device": "cpu", "cpus_per_worker": 2.0}, TrialResources(1, 2.0, 0.0)),
    ],
)
def test_a_trial_takes_gpus_where_there_are_some_and_the_options_do_not_say_otherwise(options, expected):
    defaults = {"gpus_per_trial": None, "workers_per_trial": None, "cpus_per_worker": 1.0, "device": "auto"}
    assert resources_for_trial([{"CPU": 4.0}, {"CPU": 4.0, "GPU": 4.0}], **(defaults | options)) == expected


def test_without_gpus_a_trial_asks_for_none_unless_an_option_says_so():
    defaults = {"workers_per_trial": None, "cpus_per_worker": 1.0, "device": "auto"}
    assert resources_for_trial([{"CPU": 2.0}], gpus_per_trial=None, **defaults).gpus == 0
    resources = resources_for_trial([{"CPU": 2.0}], gpus_per_trial=1.0, **defaults)
    with pytest.raises(InputError, match="1 x 1 = 1 GPU"):
        count_trials_at_once([{"CPU": 2.0}], resources, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"gpus_per_trial": 1.0, "workers_per_trial": 2, "device": "auto"},
        {"gpus_per_trial": 1.0, "workers_per_trial": None, "device": "cpu"},
        {"gpus_per_trial": 1.5, "workers_per_trial": None, "device": "auto"},
    ],
)
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(InputError, match="gpus-per-trial"):
        resources_for_trial([{"CPU": 2.0, "GPU": 2.0}], cpus_per_worker=1.0, **options)
