"""How many workers fit: on the machines that are there, and on those that an autoscaler may add."""

from __future__ import annotations

import pytest

from ali_dist.config.loading import from_mapping
from ali_dist.errors import InputError
from ali_dist.launchers.resources import (
    check_lanes,
    format_inventory,
    format_request,
    offers_resource,
    workers_after_growth,
    workers_that_fit,
)

GPU = {"CPU": 1.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "per_worker", "fitting"),
    [
        ([{"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 4}], GPU, 3),  # the second has a CPU for one worker alone
        ([{"memory": 1.0}, {"CPU": 2}], {"CPU": 1.0}, 2),  # a head without CPUs
        ([{"CPU": 1}] * 4, {"CPU": 2.0}, 0),  # 4 CPUs in all, and no machine with 2
        ([{"CPU": 4, "GPU": 1}], {"CPU": 1.0, "GPU": 0.1}, 4),
        ([{"CPU": 10, "GPU": 0.3}], {"CPU": 1.0, "GPU": 0.1}, 3),  # 0.3 / 0.1 is 2.9999999999999996
        ([], GPU, 0),
    ],
)
def test_a_worker_lies_on_one_machine(nodes, per_worker, fitting):
    assert workers_that_fit(nodes, per_worker) == fitting


@pytest.mark.parametrize(
    ("gpus", "share", "fitting"),
    [(2, 0.6, 2), (1, 0.5, 2), (4, 0.3, 12), (1, 0.3333, 3), (3, 1.0, 3), (5, 2.0, 2), (1.4, 0.4, 3), (0, 0.5, 0)],
)
def test_a_worker_with_a_fraction_of_a_gpu_lies_on_one_gpu(gpus, share, fitting):
    """Ray places 2 workers of 0.6 on 2 GPUs and never 3, although 2 / 0.6 is above 3."""
    assert workers_that_fit([{"CPU": 64, "GPU": gpus}], {"CPU": 1.0, "GPU": share}) == fitting
    on_three_machines = workers_that_fit([{"CPU": 64, "GPU": gpus}] * 3, {"CPU": 1.0, "GPU": share})
    assert on_three_machines == 3 * fitting


@pytest.mark.parametrize("gpus", [1.5, 2.5])
def test_more_than_a_gpu_that_is_not_whole_is_refused_as_ray_refuses_it(gpus):
    with pytest.raises(InputError, match=rf"scale.gpus_per_worker is {gpus}, but must be less than 1, or a whole"):
        from_mapping({"scale.gpus_per_worker": gpus})
    assert from_mapping({"scale.gpus_per_worker": 2}).scale.gpus_per_worker == 2


def test_there_are_no_more_workers_than_lanes_and_the_refusal_names_the_option_at_hand():
    config = from_mapping({"data.lanes": 32, "data.global_batch_size": 64})
    check_lanes(config, 32)
    with pytest.raises(InputError, match="scale.workers asks for 33 workers, but the data order has 32 lanes"):
        check_lanes(config, 33)
    with pytest.raises(InputError, match="--workers-per-trial asks for 40 workers"):
        check_lanes(config, 40, "--workers-per-trial")


def autoscaling(limit: int, head: dict | None, **workers: tuple[dict | None, int | None]) -> dict:
    types = {
        name: {"resources": resources, **({} if most is None else {"max_workers": most})}
        for name, (resources, most) in workers.items()
    }
    types["head"] = {"resources": head, "max_workers": 0}
    return {"max_workers": limit, "head_node_type": "head", "available_node_types": types}


def test_an_autoscaler_adds_no_more_than_its_limits():
    eight, one = {"CPU": 96, "GPU": 8}, {"CPU": 8, "GPU": 1}
    assert workers_after_growth(autoscaling(10, {"CPU": 8}, big=(eight, 2), small=(one, None)), GPU) == 2 * 8 + 8 * 1
    assert workers_after_growth(autoscaling(1, {"CPU": 8, "GPU": 1}, big=(eight, 2), small=(one, None)), GPU) == 8 + 1
    assert workers_after_growth(autoscaling(10, {"CPU": 8}, small=({"CPU": 8}, None)), GPU) == 0


def test_gpus_that_only_the_autoscaler_has_count_as_there():
    """Otherwise a run on a cloud whose GPU machines come on demand would be placed on CPUs."""
    one = {"CPU": 8, "GPU": 1}
    assert offers_resource(autoscaling(10, {"CPU": 8}, small=(one, None)), "GPU")
    assert not offers_resource(autoscaling(10, {"CPU": 8}, small=(one, 0)), "GPU")
    assert not offers_resource(autoscaling(10, {"CPU": 8}, own=({}, 2)), "GPU")
    assert not offers_resource({}, "GPU")


def test_machines_without_a_description_are_no_reason_to_refuse():
    assert workers_after_growth(autoscaling(2, {}, own=({}, 2)), GPU) is None
    assert workers_after_growth({}, GPU) is None


def test_the_request_and_the_inventory_in_words():
    assert format_request(1, {"CPU": 1.0}) == "1 worker with 1 CPU each"
    assert format_request(8, {"CPU": 4.0, "GPU": 0.5}) == "8 workers with 4 CPU, 0.5 GPU each"
    nodes = [{"CPU": 8, "GPU": 1, "memory": 9e9}, {"CPU": 8, "GPU": 1}, {}]
    assert format_inventory(nodes, GPU) == "2 machines with 8 CPU, 1 GPU and 1 machine with 0 CPU, 0 GPU"
    assert format_inventory([], GPU) == "no machines"
