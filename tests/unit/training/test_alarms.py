"""Sick runs raise the right alarm, healthy ones none; and what a run does about an alarm.

Run: `make test ARGS=tests/unit/training/test_alarms.py`
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.distributed import World
from ali_dist.errors import Stopped, TrainingError
from ali_dist.model.ali import ALI
from ali_dist.runs.image_sizes import sizes_for_images
from ali_dist.training import alarm_response
from ali_dist.training.alarms import HOLD_UPDATES, RULES, AlarmWatch
from ali_dist.training.loop import fit
from tests.helpers.arrays import write_arrays
from tests.helpers.runs import StoppingContext, assert_bitwise_equal, find_newest_checkpoint, load_weights
from tests.helpers.sick_runs import (
    BATCH,
    blind_discriminator,
    collapse_encoder,
    cut_discriminator,
    drop_modes,
    folder_of,
    move_latents,
    move_samples,
    raised_names,
    read_events,
    sickness,
    stay_healthy,
    watched_config,
)

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    ensure_prepared("mixture-grid", str(folder))
    return folder


@pytest.fixture
def make_config(tmp_path: Path, mixture: Path) -> MakeConfig:
    def make(**changes: Any) -> Config:
        return watched_config(tmp_path, **{"data__url": str(mixture), **changes})

    return make


def read_summary(config: Config) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder_of(config) / "summary.json").read_text())
    return summary


# ---- sick and healthy runs -------------------------------------------------------------------------------------------

NO_CYCLE = {"objective__cycle_x": 0}
FAST_D = {"objective__loss": "nonsaturating", "objective__r1": 0, "objective__r2": 0, "optim__lr_d": 3.0}
NO_PENALTY = {"objective__r1": 0, "objective__r2": 0, "model__discriminator_dropout": 0.0, "optim__lr_d": 0.01}
SICK: dict[str, tuple[Callable, dict[str, Any], set[str]]] = {
    "D's rate is far too high": (stay_healthy, FAST_D, {"discriminator_saturated"}),
    "D tells all pairs apart": (
        move_samples,
        {"objective__loss": "nonsaturating", **NO_PENALTY},
        {"discriminator_won"},
    ),
    "D tells all pairs apart by a margin": (
        move_samples,
        {"objective__loss": "hinge", **NO_PENALTY},
        {"discriminator_won", "dead_discriminator"},
    ),
    "D is blind to z": (blind_discriminator, {}, {"discriminator_blind_to_z"}),
    "sigma is 0": (collapse_encoder, {}, {"encoder_collapsed"}),
    "latents lie beside the prior": (move_latents, {}, {"latents_off_prior"}),
    "all samples are the same": (drop_modes, {}, {"modes_dropped"}),
    "D passes no gradient on": (cut_discriminator, NO_CYCLE, {"dead_encoder", "dead_decoder"}),
}


@pytest.mark.parametrize(("spoil", "changes", "expected"), SICK.values(), ids=SICK)
def test_a_sick_run_raises_its_alarm_once(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str], spoil: Callable, changes: dict, expected: set[str]
) -> None:
    config = make_config(**changes)
    with sickness(spoil):
        fit(config, StoppingContext())
    names = raised_names(config)
    assert expected <= set(names)
    assert len(set(names)) == len(names)
    said, page = capsys.readouterr().err, (folder_of(config) / "report.html").read_text()
    alarms = read_summary(config)["alarms"]
    for name in expected:
        (rule,) = (rule for rule in RULES if rule.name == name)
        (alarm,) = (alarm for alarm in alarms if alarm["alarm"] == name)
        assert alarm["response"] == "warn"
        assert said.count(f"Alarm {name} after {alarm['images']:,} images") == 1
        assert rule.advice in said
        assert name in page
        assert rule.advice in page


def write_digit_pictures(folder: Path) -> str:
    """Digits at 16 by 16, as pictures of a user's own."""
    from sklearn.datasets import load_digits

    x = np.round(load_digits().images[:400] * (255 / 16)).astype(np.uint8).repeat(2, 1).repeat(2, 2)[:, None]
    write_arrays(folder / "train", x, None)
    return str(folder)


def test_short_runs_of_mixture_and_digits_raise_no_alarm(tmp_path: Path, make_config: MakeConfig) -> None:
    ensure_prepared("digits", str(tmp_path / "digits"))
    digits = watched_config(
        tmp_path, "digits", run__name="digits", data__url=str(tmp_path / "digits"), model__latent_size=8
    )
    for config in (make_config(), digits):
        fit(config, StoppingContext())
        assert len(read_events(config, "watch")) == 8
        assert raised_names(config) == []
        assert read_summary(config)["alarms"] == []


def test_a_short_run_of_images_raises_no_alarm(tmp_path: Path) -> None:
    updates = 150
    settings = sizes_for_images(16, 400)
    batch = settings["data.global_batch_size"]
    small = {"run.name": "images", "run.images": updates * batch, "model.width": 0.125, "model.latent_size": 8}
    often = {"report.log_every": 25 * batch, "report.evaluation": "none", "scale.device": "cpu"}
    places = {"run.dir": str(tmp_path), "data.url": write_digit_pictures(tmp_path / "data")}
    config = from_mapping(load_preset("images"), settings, small, often, places)
    fit(config, StoppingContext())
    assert len(read_events(config, "watch")) == 6
    assert raised_names(config) == []


# ---- when an alarm is raised -----------------------------------------------------------------------------------------


def test_an_alarm_is_raised_once_and_only_after_it_has_held() -> None:
    watch, raised = AlarmWatch(), []
    sick, healthy = {"sigma": 0.0}, {"sigma": 0.5}
    for step in range(25, 400, 25):
        alarms = watch.look(healthy if step == 100 else sick, step)
        raised += [(alarm.name, alarm.since_step, step, alarm.looks) for alarm in alarms]
    assert raised == [("encoder_collapsed", 125, 125 + HOLD_UPDATES, 5)]
    assert watch.clear_step == 100


def test_a_measure_that_comes_and_goes_raises_nothing() -> None:
    watch = AlarmWatch()
    for number, step in enumerate(range(50, 5000, 50)):
        assert watch.look({"sigma": 0.5 if number % 3 == 2 else 0.0}, step) == []


def test_one_look_is_never_enough_and_a_nan_is_sick() -> None:
    watch = AlarmWatch()
    assert watch.look({"latent_kl": math.nan}, 1000) == []
    assert [alarm.name for alarm in watch.look({"latent_kl": math.nan}, 2000)] == ["latents_off_prior"]


def test_the_state_of_the_watch_survives_json() -> None:
    watch = AlarmWatch()
    for step in (25, 50, 75, 100, 125):
        watch.look({"sigma": 0.0, "latent_kl": 2.0 if step > 50 else 0.0}, step)
    assert AlarmWatch.restored(json.loads(json.dumps(watch.state())), 130) == watch


# ---- looking changes nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"preset": "mixture-paper"}, {"model__discriminator_dropout": 0.2}])
def test_looking_changes_nothing_in_the_training(make_config: MakeConfig, changes: dict[str, Any]) -> None:
    often = make_config(run__name="often", updates=60, **changes)
    seldom = make_config(
        run__name="seldom", updates=60, report__log_every=60 * BATCH, report__checkpoint_every=0, **changes
    )
    fit(often, StoppingContext())
    fit(seldom, StoppingContext())
    assert len(read_events(often, "watch")) > len(read_events(seldom, "watch"))
    assert_bitwise_equal(load_weights(often), load_weights(seldom))


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({"objective__game": "gan", "objective__cycle_x": 0}, {"z_effect", "latent_kl", "sigma"}),
        ({"model__encoder": "deterministic"}, {"sigma"}),
        ({"objective__packing": 2, "scale__micro_batch": 8}, set()),
        ({"data__global_batch_size": 4}, {"latent_kl", "sample_spread"}),
        ({"objective__unary": True, "objective__r1": 0, "objective__r2": 0}, set()),
    ],
    ids=["gan", "deterministic", "packs-in-parts", "small-batch", "unary"],
)
def test_a_game_is_measured_by_what_it_has(make_config: MakeConfig, changes: dict[str, Any], lacks: set[str]) -> None:
    config = make_config(updates=50, **changes)
    fit(config, StoppingContext())
    measures = read_events(config, "watch")[-1]
    assert {rule.measure for rule in RULES} - measures.keys() == lacks
    assert all(math.isfinite(value) for value in measures.values() if isinstance(value, float))


# ---- what is done about it -------------------------------------------------------------------------------------------


def test_stopping_leaves_the_checkpoint_from_before_the_trouble_and_the_run_goes_on_from_it(
    make_config: MakeConfig,
) -> None:
    config = make_config(run__on_alarm="stop", updates=300, report__keep_checkpoints=1)
    with sickness(collapse_encoder, first=60), pytest.raises(TrainingError, match="Alarm encoder_collapsed") as stop:
        fit(config, StoppingContext())
    assert "the newest checkpoint is from before the trouble" in str(stop.value)
    summary = read_summary(config)
    assert (summary["status"], summary["step"], summary["rollbacks"]) == ("stopped", 175, 0)
    assert [alarm["response"] for alarm in summary["alarms"]] == ["stop"]
    assert find_newest_checkpoint(config).name == "step-000000050"
    healthy = fit(config, StoppingContext())
    assert healthy is not None
    assert (healthy["status"], healthy["step"], healthy["alarms"]) == ("finished", 300, [])


def test_a_rollback_goes_on_from_before_the_trouble_with_other_noise(
    make_config: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(run__on_alarm="rollback", run__name="sick", report__keep_checkpoints=1)
    healthy = make_config(run__name="healthy")
    fit(healthy, StoppingContext())
    with sickness(collapse_encoder, first=60, last=175) as updates:
        summary = fit(config, StoppingContext())
    assert summary is not None
    assert updates[0] == 175 + 150  # from update 50 on once more
    assert (summary["status"], summary["step"], summary["rollbacks"]) == ("finished", 200, 1)
    (alarm,) = summary["alarms"]
    assert (alarm["alarm"], alarm["images"], alarm["response"]) == ("encoder_collapsed", 175 * BATCH, "rollback")
    (rollback,) = read_events(config, "rollback")
    assert (rollback["step"], rollback["alarm_images"]) == (50, 175 * BATCH)
    assert [r["step"] for r in read_events(config, "train")] == [r["step"] for r in read_events(healthy, "train")]
    assert "Rolled back from 5,600 to 1,600 images because of encoder_collapsed" in capsys.readouterr().err
    ours, others = load_weights(config), load_weights(healthy)
    assert any(not torch.equal(ours[name], others[name]) for name in ours)
    page = (folder_of(config) / "report.html").read_text()
    assert "encoder_collapsed" in page
    assert "rolled back" in page


class LeavingContext(StoppingContext):
    """A rank that is told before its update 121 that one of the run's machines will leave."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def count_leaving_machines(self) -> int:
        self._calls += 1
        return int(self._calls > 120)


def lose_a_weight(ali: ALI) -> None:
    """A weight is NaN, while the losses of the update before it were finite."""
    next(iter(ali.encoder.parameters())).view(-1)[0] = math.nan


@pytest.mark.parametrize("moment", ["at a due save", "at a notice"])
def test_a_weight_that_is_not_finite_when_it_would_be_saved_rolls_a_run_back(
    make_config: MakeConfig, moment: str
) -> None:
    config = make_config(run__on_alarm="rollback", run__name="sick")
    update, context = (100, StoppingContext()) if moment == "at a due save" else (120, LeavingContext())
    with sickness(lose_a_weight, first=update, last=update):
        summary = fit(config, context)
    assert summary is not None
    assert (summary["status"], summary["step"], summary["rollbacks"]) == ("finished", 200, 1)
    assert [alarm["alarm"] for alarm in summary["alarms"]] == ["not_finite"]
    (rollback,) = read_events(config, "rollback")
    assert rollback["alarm_images"] == update * BATCH


class Killed(BaseException):
    """The process is gone."""


def test_a_run_killed_after_a_rollback_ends_as_one_that_was_not(make_config: MakeConfig) -> None:
    def die_after(count: int) -> Callable:
        def spoil(ali: Any) -> None:
            if updates[0] == count:
                raise Killed
            if updates[0] <= 175:
                collapse_encoder(ali)

        return spoil

    unbroken = make_config(run__on_alarm="rollback", run__name="unbroken")
    killed = make_config(run__on_alarm="rollback", run__name="killed")
    with sickness(die_after(10**9), first=60) as updates:
        fit(unbroken, StoppingContext())
    with sickness(die_after(180), first=60) as updates, pytest.raises(Killed):
        fit(killed, StoppingContext())
    summary = fit(killed, StoppingContext())
    assert summary is not None
    assert (summary["rollbacks"], summary["restarts"]) == (1, 1)
    assert_bitwise_equal(load_weights(unbroken), load_weights(killed))


def test_trouble_that_other_noise_does_not_mend_stops_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alarm_response, "MOST_ROLLBACKS", 2)
    config = make_config(run__on_alarm="rollback")
    with sickness(drop_modes), pytest.raises(TrainingError, match="after 2 rollbacks"):
        fit(config, StoppingContext())
    summary = read_summary(config)
    assert (summary["status"], summary["rollbacks"]) == ("stopped", 2)
    assert [alarm["response"] for alarm in summary["alarms"]] == ["rollback", "rollback", "rollback"]
    assert find_newest_checkpoint(config).name == "step-000000000"


@pytest.mark.parametrize("record_every", [5, 25])
def test_a_loss_that_is_not_finite_is_rolled_back_at_records_with_a_look_and_without(
    make_config: MakeConfig, record_every: int
) -> None:
    def spoil(ali: Any) -> None:
        next(ali.parameters()).fill_(math.nan)

    config = make_config(run__on_alarm="rollback", updates=100, report__log_every=record_every * BATCH)
    with sickness(spoil, first=60, last=60):
        summary = fit(config, StoppingContext())
    assert summary is not None
    assert [alarm["alarm"] for alarm in summary["alarms"]] == ["not_finite"]
    assert (summary["status"], summary["rollbacks"]) == ("finished", 1)


def test_a_resumed_run_raises_its_alarm_where_an_unbroken_one_does(make_config: MakeConfig) -> None:
    unbroken, broken = make_config(run__name="unbroken"), make_config(run__name="broken")
    with sickness(collapse_encoder):
        fit(unbroken, StoppingContext())
    with sickness(collapse_encoder):
        with pytest.raises(Stopped):
            fit(broken, StoppingContext(World(), stop_before=110))
        fit(broken, StoppingContext())
    for event in ("alarm", "watch"):
        first, second = ([_without_time(r) for r in read_events(config, event)] for config in (unbroken, broken))
        assert first == second
    assert raised_names(broken) == ["encoder_collapsed"]


def _without_time(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "seconds"}
