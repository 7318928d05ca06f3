"""What a run's time went to is all of its time, over all of its starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ali_dist.errors import Stopped
from ali_dist.training.loop import fit
from ali_dist.training.time_budget import PARTS, add_up, read_spent
from tests.helpers.runs import StoppingContext, tiny_config
from tests.helpers.trained import labelled_images


def test_phases_waits_and_earlier_starts_are_added_up() -> None:
    phases = {"": 10.0, "evaluating": 2.0, "uploading": 1.0, "saving": 0.5, "opening the data, first update": 4.0}
    total = add_up({"compute": 100.0, "drawing": 7.0}, phases, waited=3.0)
    assert total == {"compute": 107.0, "data": 3.0, "evaluation": 2.0, "drawing": 7.0, "saving": 1.5, "start": 4.0}
    assert add_up({}, {"": 1.0}, waited=5.0)["compute"] == 0.0, "no part is negative"


def test_what_a_checkpoint_lacks_or_holds_wrongly_is_left_out() -> None:
    assert read_spent({}) == {}
    assert read_spent({"data": 1, "compute": "long", "else": 2.0}) == {"data": 1.0}


def test_time_and_starts_of_a_run_go_on_after_a_stop(tmp_path: Path) -> None:
    data = labelled_images(tmp_path / "data", "classes")
    places: dict[str, Any] = {"data__url": str(data), "data__source": "none", "report__gallery_every": 96}
    config = tiny_config(tmp_path, **places)
    summary = tmp_path / "runs" / "tiny" / "summary.json"
    with pytest.raises(Stopped):
        fit(config, StoppingContext(stop_before=6))
    stopped = json.loads(summary.read_text())
    assert tuple(stopped["time"]) == PARTS
    assert all(stopped["time"][part] > 0 for part in ("compute", "drawing", "saving", "start"))
    fit(config, StoppingContext())
    finished = json.loads(summary.read_text())
    assert finished["restarts"] == 1
    assert finished["time"]["drawing"] > 1.2 * stopped["time"]["drawing"]
    assert [start["images"] for start in stopped["starts"]] == [0]
    assert [start["images"] for start in finished["starts"]] == [0, stopped["images"]]
    assert finished["starts"][0] == stopped["starts"][0]
    for record in (stopped, finished):
        # What lies between the parts is little, but of a run of 2 s on a busy machine it may be half a second.
        assert 0.75 * record["seconds"] - 0.6 < sum(record["time"].values()) < 1.05 * record["seconds"] + 0.1
