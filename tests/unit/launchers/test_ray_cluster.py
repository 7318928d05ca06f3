"""What is decided about a Ray cluster before anything is placed on it; no cluster is started."""

from __future__ import annotations

import socket
import sys

import pytest

from ali_dist.errors import InputError
from ali_dist.launchers import ray_cluster
from ali_dist.launchers.ray_cluster import choose_workers, find_interface
from tests.helpers.runs import tiny_config

CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


def choose(tmp_path, nodes, per_worker, **changes) -> tuple[tuple[int, int], list[str]]:
    lines: list[str] = []
    config = tiny_config(tmp_path, **{"scale__workers": "auto", **changes})
    return choose_workers(config, nodes, per_worker, lines.append), lines


@pytest.mark.parametrize(
    ("nodes", "per_worker", "workers"),
    [
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 1.0}], GPU, 5),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}], GPU, 4),  # a head without a GPU
        ([{"CPU": 8.0, "GPU": 2.0}], {"CPU": 1.0, "GPU": 0.6}, 2),  # each worker lies on one GPU
        ([{"CPU": 8.0}, {"CPU": 2.0}], CPU, 2),
        ([{"memory": 1.0}, {"CPU": 8.0}, {"CPU": 8.0}], CPU, 2),  # a head with --num-cpus=0
        ([{"memory": 1.0}], CPU, 1),  # nothing yet: an autoscaler may add the first
    ],
)
def test_by_default_every_gpu_works_or_else_every_machine(tmp_path, nodes, per_worker, workers):
    assert choose(tmp_path, nodes, per_worker) == ((workers, workers), [])


def test_a_cluster_with_room_for_more_workers_than_lanes_is_used_as_far_as_they_go_with_a_line(tmp_path):
    workers, (line,) = choose(tmp_path, [{"CPU": 96.0, "GPU": 8.0}], GPU)
    assert workers == (6, 6)
    assert "room for 8 workers" in line
    assert "6 lanes" in line


def test_the_number_that_the_user_sets_is_taken_or_refused(tmp_path):
    assert choose(tmp_path, [], GPU, scale__workers="2:4")[0] == (2, 4)
    with pytest.raises(InputError, match="7 workers, but the data order has 6 lanes"):
        choose(tmp_path, [], GPU, scale__workers="7")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="interfaces are looked up as on Linux")
def test_an_address_has_an_interface_or_none():
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("203.0.113.1") is None


@pytest.mark.parametrize("form", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_a_cluster_that_is_gone_is_named_with_the_variable_that_names_it(monkeypatch, form):
    """Ray alone would try for many minutes, with nothing but its own warnings."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = form.format(port=unused.getsockname()[1])
    monkeypatch.setattr(ray_cluster, "_ANSWER_SECONDS", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        InputError, match=rf"RAY_ADDRESS is '{address}', .* \(Connection refused\): .* unset RAY_ADDRESS"
    ):
        ray_cluster.connect_to_ray()
