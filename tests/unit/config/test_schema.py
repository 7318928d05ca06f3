"""The one schema of all settings: what it accepts, what it refuses, and that every refusal names a remedy.

Run: `make test ARGS=tests/unit/config/test_schema.py`
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ali_dist.config import Config, DataConfig, ScaleConfig
from ali_dist.config.loading import from_mapping, parse_overrides, setting_infos
from ali_dist.errors import InputError


def refuse_layers(*layers: dict[str, Any]) -> str:
    """Load layers that must be refused; returns the sentence that refuses them."""
    with pytest.raises(InputError) as caught:
        from_mapping(*layers)
    message = str(caught.value)
    assert "\n" not in message, "a refusal is one line"
    assert message.endswith((".", "?")), "a refusal is a whole sentence"
    return message


# ---- the schema itself -------------------------------------------------------------------------------------------


def test_every_setting_explains_itself_and_can_be_described() -> None:
    """A setting without a help text, or with a type that no message can describe, is unfinished."""
    for info in setting_infos().values():
        assert len(info.help) > 10, info.key
        assert info.allowed(), info.key


def read_setting(config: Config, key: str) -> Any:
    """Read the value of a setting by its dotted name."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def test_settings_are_plain_sections_of_plain_values() -> None:
    """Dotted names are `section.name`, and every default is accepted as a value."""
    for key, info in setting_infos().items():
        assert key.count(".") == 1
        assert read_setting(from_mapping({key: info.default}), key) == info.default


def test_a_config_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.images = 0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run = None  # type: ignore[misc,assignment]


def test_no_setting_can_hold_a_credential() -> None:
    """A config is printed, saved and logged, so that secrets must have no place in it."""
    suspicious = ("secret", "password", "access_key", "token", "credential")
    assert not [key for key in setting_infos() if any(word in key for word in suspicious)]


def test_importing_the_config_imports_no_large_library() -> None:
    """`--help`, the refusals of `--dry-run` and the Ray driver need the schema before they need anything heavy."""
    code = (
        "import sys, ali_dist.config; print(sorted({'torch', 'ray', 'boto3', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- round trips -------------------------------------------------------------------------------------------------


CHANGED_SETTINGS: dict[str, Any] = {
    "run": {"name": "trial-7", "images": 128_000, "seed": 2**31 - 1},
    "storage": {"endpoint_url": "http://127.0.0.1:8080", "timeout_seconds": 2.5},
    "data": {"source": "mixture-ring", "global_batch_size": 96, "lanes": 12, "residency": "stream"},
    "model": {"encoder": "deterministic", "discriminator_dropout": 0.2, "output_bias_from_data": True},
    "objective": {"loss": "relativistic", "r1": 0.1, "r2": 1e-7},
    "scale": {"workers": "1:4", "threads": 3, "compile": True},
}


@pytest.mark.parametrize("layer", [{}, CHANGED_SETTINGS], ids=["defaults", "changed"])
def test_a_round_trip_through_json_changes_nothing(layer: dict[str, Any]) -> None:
    """What a checkpoint saves is what a continued run reads back."""
    config = from_mapping(layer)
    assert from_mapping(json.loads(json.dumps(config.to_mapping()))) == config


@given(st.floats(min_value=1e-30, max_value=1e30), st.integers(min_value=64, max_value=10**18))
def test_numbers_survive_being_written_as_text(rate: float, images: int) -> None:
    """A number is the same as JSON, as YAML text and as a word on the command line, to the last digit."""
    for layer in ({"optim.lr_d": str(rate), "run.images": str(images)}, {"optim.lr_d": rate, "run.images": images}):
        config = from_mapping(layer)
        assert (config.optim.lr_d, config.run.images) == (rate, images)


def test_later_layers_win_in_nested_and_in_dotted_form() -> None:
    """Defaults, preset, sweep and command line override one another in this order, in any mixture of the forms."""
    nested = {"optim": {"lr_d": 1.0, "lr_g": 2.0}}
    dotted = {"optim.lr_d": 3.0}
    assert from_mapping(nested, dotted).optim.lr_d == 3.0
    assert from_mapping(dotted, nested).optim.lr_d == 1.0
    assert from_mapping(nested, dotted).optim.lr_g == 2.0


def test_an_empty_section_changes_nothing() -> None:
    assert from_mapping({"optim": {}, "data": None}) == Config()


# ---- names that do not exist -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typo", "nearest"),
    [("optim.lr_dd", "optim.lr_d"), ("model.lr_g", "optim.lr_g"), ("data.global_batchsize", "data.global_batch_size")],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(typo: str, nearest: str) -> None:
    """A typo never falls back on a default; the refusal names it and the setting that was probably meant."""
    message = refuse_layers({typo: 1})
    assert repr(typo) in message
    assert f"did you mean {nearest}?" in message
    with pytest.raises(InputError, match=f"did you mean {nearest}"):
        parse_overrides([f"--{typo}", "1"])


def test_the_refusal_of_a_name_unlike_all_others_points_to_the_list() -> None:
    message = refuse_layers({"zzz": {"qqq": 1}})
    assert "zzz.qqq" in message
    assert "--help" in message


@pytest.mark.parametrize(
    "layer", [{"nowhere": {}}, {"optim": {"lr_d": {}}}, {"optim": 3}, {"optim": {"lr_d": {"x": 1}}}]
)
def test_nothing_in_a_layer_is_skipped_silently(layer: dict[str, Any]) -> None:
    """Empty mappings, values for whole sections and names that are too deep are refused."""
    key = next(iter(layer))
    assert key in refuse_layers(layer)


# ---- values of the wrong kind --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.lr_d", "3e-4", 3e-4),
        ("run.images", "64_000", 64_000),
        ("run.images", "1e5", 100_000),
        ("run.images", 100_000.0, 100_000),
        ("scale.compile", "True", True),
        ("scale.workers", 2, "2"),
        ("run.name", 2024, "2024"),
        ("data.lanes", "none", None),
        ("storage.endpoint_url", "null", None),
        ("data.source", None, None),
        ("report.evaluation", "none", "none"),
    ],
)
def test_text_and_numbers_become_the_type_of_the_setting(key: str, text: Any, value: Any) -> None:
    read = read_setting(from_mapping({key: text}), key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("run.images", True, "a whole number"),
        ("optim.lr_d", True, "a number"),
        ("run.images", 1.5, "a whole number"),
        ("run.images", "many", "a whole number"),
        ("optim.lr_d", "nan", "a finite number"),
        ("optim.lr_d", "1e999", "a finite number"),
        ("run.seed", "99999999999999999999", "a whole number of at most 9,223,372,036,854,775,807"),
        ("optim.lr_d", [1e-4], "a number"),
        ("scale.compile", 1, "true or false"),
        ("scale.compile", "yes", "true or false"),
        ("data.url", "", "text that is not empty"),
        ("data.url", True, "text"),
        ("data.lanes", "few", "a whole number, or none"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(key: str, value: Any, expected: str) -> None:
    """The sentence names the key, the value and what is allowed; True is not a number, and NaN not a rate."""
    message = refuse_layers({key: value})
    assert message == f"{key} is {value!r}, but must be {expected}."


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data.cache_dir", "s3://bucket/cache", "a folder on a disk of this machine"),
        ("data.cache_gb", 0.0, "more than 0"),
    ],
)
def test_a_cache_is_a_folder_with_some_room(key: str, value: Any, expected: str) -> None:
    assert refuse_layers({key: value}) == f"{key} is {value!r}, but must be {expected}."


@pytest.mark.parametrize("value", [10**400, "9" * 5000])
def test_a_value_of_any_length_is_refused_in_a_short_sentence(value: Any) -> None:
    for key in ("optim.lr_d", "run.images", "run.seed", "run.name", "scale.workers"):
        message = refuse_layers({key: value})
        assert message.startswith(f"{key} is ")
        assert "..., but must be" in message
        assert len(message) < 350


def test_no_value_is_refused_where_there_is_no_none() -> None:
    assert refuse_layers({"optim.lr_d": None}) == (
        "optim.lr_d is given no value, but must be a number: give one, or leave optim.lr_d out."
    )


def test_an_unknown_choice_is_refused_with_all_choices_and_the_nearest() -> None:
    message = refuse_layers({"objective.loss": "nonsaturated"})
    for choice in ("nonsaturating", "minimax", "relativistic", "hinge"):
        assert choice in message
    assert message.endswith("did you mean nonsaturating?")
    assert refuse_layers({"objective.loss": "wgan"}).endswith("hinge.")
    assert refuse_layers({"optim.schedule": 3}) == "optim.schedule is 3, but must be 'constant' or 'cosine'."


def test_the_refusal_of_an_optional_choice_suggests_the_nearest_too() -> None:
    message = refuse_layers({"data.source": "digit"})
    assert message.endswith("or none; did you mean digits?")


# ---- values out of range -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.name", "a/b"),
        ("run.name", ".."),
        ("run.name", "a\nb"),
        ("run.name", "~"),
        ("run.name", "-rf"),
        ("run.name", " a"),
        ("run.name", "a\x1b[2J"),
        ("run.images", 10**18 + 1),
        ("run.images", 0),
        ("run.seed", -1),
        ("run.seed", 2**31),
        ("storage.attempts", 0),
        ("storage.timeout_seconds", 0),
        ("data.global_batch_size", 0),
        ("data.lanes", 0),
        ("data.prefetch", 0),
        ("model.latent_size", 0),
        ("model.latent_size", -3),
        ("model.latent_size", 10**9),
        ("model.embedding_size", 10**9),
        ("model.width", 0),
        ("model.width", 1e6),
        ("model.depth", 10**6),
        ("model.discriminator_dropout", 1),
        ("model.discriminator_dropout", -0.1),
        ("objective.r1", -1),
        ("objective.penalty_final", 0),
        ("objective.penalty_every", 0),
        ("optim.lr_d", 0),
        ("optim.lr_g", -1e-4),
        ("optim.beta1", 1),
        ("optim.beta2", 1),
        ("optim.ema_half_life", -1),
        ("scale.threads", 0),
        ("scale.threads", 10**8),
        ("scale.workers", "1000000"),
        ("scale.workers", "1:1000000"),
        ("scale.max_failures", -1),
        ("report.log_every", 0),
        ("report.keep_checkpoints", 0),
        ("report.evaluation_samples", 1),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(key: str, value: Any) -> None:
    message = refuse_layers({key: value})
    assert message.startswith(f"{key} is {as_type_of_setting(key, value)!r}, but must be ")


def as_type_of_setting(key: str, value: Any) -> Any:
    """Convert a value to the type of the setting: 0 becomes 0.0 where that is a float."""
    return float(value) if "float" in str(setting_infos()[key].type) else value


def test_the_refusal_of_no_latent_variables_names_the_smallest_number() -> None:
    assert refuse_layers({"model.latent_size": 0}) == "model.latent_size is 0, but must be from 1 to 100,000."


@pytest.mark.parametrize("value", [0.001, 0.0, 0.499])
def test_a_small_beta2_is_refused_as_the_papers_notation(value: float) -> None:
    """The paper prints 1 - beta2; a copy of its 0.001 would silently train without memory of second moments."""
    message = refuse_layers({"optim.beta2": value})
    assert repr(value) in message
    assert "0.999" in message


@pytest.mark.parametrize("extra", [{"objective.r1": 1.0}, {"objective.r2": 1.0}])
def test_the_scaled_rule_is_refused_for_penalties(extra: dict[str, Any]) -> None:
    """It would be wrong there; the refusal names the setting and the remedy."""
    message = refuse_layers({"objective.update": "scaled"}, extra)
    assert next(iter(extra)) in message
    assert "'auto'" in message


def test_a_run_shorter_than_one_batch_is_refused() -> None:
    message = refuse_layers({"run.images": 63, "data.global_batch_size": 64})
    assert "63" in message
    assert "64" in message


# ---- batch, lanes, steps -------------------------------------------------------------------------------------------


@given(st.integers(min_value=1, max_value=5000))
def test_default_lanes_are_the_largest_divisor_up_to_32(size: int) -> None:
    lanes = DataConfig(global_batch_size=size).num_lanes()
    assert 1 <= lanes <= 32
    assert size % lanes == 0
    assert not [c for c in range(lanes + 1, 33) if size % c == 0]


def test_lanes_that_are_set_are_used_as_they_are() -> None:
    assert DataConfig(global_batch_size=64, lanes=4).num_lanes() == 4


@pytest.mark.parametrize(("size", "lanes"), [(16, 32), (64, 24), (1, 2)])
def test_a_batch_that_the_lanes_do_not_divide_is_refused_with_the_arithmetic(size: int, lanes: int) -> None:
    """The sentence gives both numbers, the rule, and the lanes that would be used by default."""
    message = refuse_layers({"data.global_batch_size": size, "data.lanes": lanes})
    assert f"data.global_batch_size is {size}" in message
    assert f"data.lanes is {lanes}" in message
    assert f"multiple of {lanes}" in message
    assert f"({DataConfig(global_batch_size=size).num_lanes()} would be used)" in message


@pytest.mark.parametrize(("images", "size", "steps"), [(64, 64, 1), (127, 64, 1), (128, 64, 2), (64_000, 100, 640)])
def test_a_run_has_as_many_steps_as_whole_batches_fit_into_its_images(images: int, size: int, steps: int) -> None:
    assert from_mapping({"run.images": images, "data.global_batch_size": size}).total_steps() == steps


# ---- workers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", None), ("0", (0, 0)), ("1", (1, 1)), ("8", (8, 8)), ("1:4", (1, 4)), ("2:2", (2, 2))],
)
def test_workers_are_a_number_or_a_range(text: str, expected: tuple[int, int] | None) -> None:
    assert ScaleConfig(workers=text).worker_range() == expected


@pytest.mark.parametrize("text", ["-1", "two", "4:2", "0:4", "1:", ":4", "1:4:8", "1.5", "²", "1: 4", "auto:2"])
def test_workers_that_are_neither_a_number_nor_a_range_are_refused(text: str) -> None:
    message = refuse_layers({"scale.workers": text})
    assert repr(text) in message
    assert "MIN:MAX" in message


def test_a_misspelt_augmentation_is_refused_with_the_nearest() -> None:
    assert refuse_layers({"objective.augment": "color,translatoin"}).endswith("; did you mean translation.")
    assert refuse_layers({"objective.augment": "Color"}).endswith("; did you mean color.")
