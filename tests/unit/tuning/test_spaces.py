"""Search spaces: draws lie inside and can be repeated, and mistakes are refused before anything starts."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ali_dist.config.loading import from_mapping, preset_names
from ali_dist.errors import InputError
from tests.helpers.sweeps import SPACE, preset_settings
from tuning.spaces import (
    check_space,
    draw_settings,
    grid_settings,
    load_space,
    parse_space,
    searched_values,
    space_names,
    space_to_mapping,
    without_settings,
)

SPACE_PARSED = parse_space(yaml.safe_load(SPACE))


@given(st.integers(0, 10_000), st.integers(0, 10_000))
def test_every_draw_lies_inside_and_has_the_settings_type(seed, number):
    drawn = draw_settings(SPACE_PARSED, seed, number)
    assert all(dimension.contains(drawn[dimension.name]) for dimension in SPACE_PARSED)
    assert type(drawn["model.latent_size"]) is int
    assert drawn == draw_settings(SPACE_PARSED, seed, number)


def test_draws_differ_between_trials_and_between_seeds():
    rates = [draw_settings(SPACE_PARSED, seed, number)["optim.lr_d"] for seed in range(3) for number in range(10)]
    assert len(set(rates)) == len(rates)


def test_draws_fill_the_range_evenly_in_the_scale_asked_for():
    """A uniform draw of a learning rate would put nine tenths of the trials into the top decade."""
    drawn = [draw_settings(SPACE_PARSED, 0, number) for number in range(2000)]
    low_decade = sum(d["optim.lr_d"] < 1e-3 for d in drawn) / len(drawn)
    assert low_decade == pytest.approx(0.5, abs=0.05)
    sizes = [d["model.latent_size"] for d in drawn]
    assert {size: sizes.count(size) for size in set(sizes)}.keys() == set(range(2, 10)), "both ends are included"
    assert min(map(sizes.count, range(2, 10))) > 170


def test_a_drawn_number_is_exactly_what_a_table_shows_and_a_config_holds():
    for number in range(50):
        rate = draw_settings(SPACE_PARSED, 0, number)["optim.lr_d"]
        assert float(f"{rate:.4g}") == rate
        assert from_mapping({"optim.lr_d": repr(rate)}).optim.lr_d == rate


def test_a_grid_has_every_combination_once_with_the_ends_of_ranges():
    rows = grid_settings(SPACE_PARSED)
    assert len(rows) == 3 * 3 * 2
    assert len({tuple(row.values()) for row in rows}) == len(rows)
    rates = sorted({row["optim.lr_d"] for row in rows})
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2])
    assert (rates[0], rates[-1]) == (1e-4, 1e-2)


def test_a_space_survives_json():
    assert parse_space(space_to_mapping(SPACE_PARSED)) == SPACE_PARSED


def test_nested_and_dotted_names_are_the_same_space():
    nested = {"optim": {"lr_d": {"loguniform": [1e-4, 1e-2]}}}
    assert parse_space(nested) == parse_space({"optim.lr_d": {"loguniform": ["1e-4", "1e-2"]}})


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ({"optim.lr": {"uniform": [0, 1]}}, "did you mean optim.lr_"),
        ({"optim": {"lrd": [1]}}, "did you mean optim.lr_d"),
        ({"optim.lr_d": {"loguniorm": [1e-4, 1e-2]}}, "did you mean loguniform"),
        ({"optim.lr_d": {"loguniform": [0, 1]}}, "above 0"),
        ({"optim.lr_d": {"uniform": [1, 0]}}, "low below high"),
        ({"optim.lr_d": {"uniform": [1]}}, "needs two numbers"),
        ({"model.latent_size": {"int": [2, 3.5]}}, "two whole numbers"),
        ({"optim.lr_d": 1e-3}, "must be a list of values or one of"),
        ({"optim.lr_d": []}, "needs a list"),
        ({"run.images": [1, 2]}, "the sweep sets it"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_name_and_the_remedy(mapping, says):
    with pytest.raises(InputError, match="(?s)" + says) as caught:
        parse_space(mapping)
    assert "\n" not in str(caught.value)


def test_values_that_a_trial_would_refuse_are_refused_before_any_trial():
    space = parse_space({"model.latent_size": {"int": [0, 8]}})
    with pytest.raises(InputError, match="Searching model.latent_size, value 0: model.latent_size is 0"):
        check_space(space, [preset_settings("digits")])
    with pytest.raises(InputError, match="value 'wasserstein'"):
        check_space(parse_space({"objective.loss": ["hinge", "wasserstein"]}), [preset_settings("digits")])


def test_settings_that_need_each_other_are_checked_with_the_preset_not_alone():
    """objective.entropy is refused without objective.supervised, which the digits-semi preset has."""
    space = parse_space({"objective.entropy": {"uniform": [0.1, 1]}})
    check_space(space, [preset_settings("digits-semi")])
    with pytest.raises(InputError, match="objective.supervised"):
        check_space(space, [preset_settings("digits")])


@pytest.mark.parametrize("name", space_names())
def test_every_space_that_ships_fits_its_preset_and_holds_the_presets_own_numbers(name):
    preset = name if name in preset_names() else "cifar10"
    base = preset_settings(preset)
    check_space(load_space(name), [base])
    own = searched_values(load_space(name), base)
    assert all(d.contains(own[d.name]) or own[d.name] is None for d in load_space(name))


def test_what_the_user_fixes_is_not_searched_and_something_must_be_left():
    left = without_settings(SPACE_PARSED, {"optim.lr_d": "1e-3"})
    assert [dimension.name for dimension in left] == ["model.latent_size", "objective.loss"]
    with pytest.raises(InputError, match="leave one of them out"):
        without_settings(SPACE_PARSED, dict.fromkeys(d.name for d in SPACE_PARSED))
