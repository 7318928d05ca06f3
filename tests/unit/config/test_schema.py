"""The one schema: what it accepts, what it refuses, and that every refusal says how to go on.

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


def refusal(*layers: dict[str, Any]) -> str:
    """The sentence that `from_mapping` refuses these layers with."""
    with pytest.raises(InputError) as caught:
        from_mapping(*layers)
    message = str(caught.value)
    assert "\n" not in message, "a refusal is one line"
    assert message.endswith((".", "?")), "a refusal is a whole sentence"
    return message


# ---- the schema itself -------------------------------------------------------------------------------------------


def test_every_setting_explains_itself_and_can_be_described() -> None:
    """A setting without a help text or with a type that no message can describe is unfinished."""
    for info in setting_infos().values():
        assert len(info.help) > 10, info.key
        assert info.allowed(), info.key


def test_settings_are_plain_sections_of_plain_values() -> None:
    """Dotted names are `section.name`, and every default passes as its own type."""
    for key, info in setting_infos().items():
        assert key.count(".") == 1
        assert getattr(getattr(from_mapping({key: info.default}), key.split(".")[0]), key.split(".")[1]) == info.default


def test_config_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run.images = 0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().run = None  # type: ignore[misc,assignment]


def test_no_setting_can_hold_a_credential() -> None:
    """Config is printed, saved and logged, so secrets must have no place in it."""
    suspicious = ("secret", "password", "access_key", "token", "credential")
    assert not [key for key in setting_infos() if any(word in key for word in suspicious)]


def test_importing_config_costs_neither_torch_nor_ray() -> None:
    """`--help`, `--dry-run` errors and the Ray driver need the schema before they need anything heavy."""
    code = (
        "import sys, ali_dist.config; print(sorted({'torch', 'ray', 'boto3', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- round trips -------------------------------------------------------------------------------------------------


CHANGED: dict[str, Any] = {
    "run": {"name": "trial-7", "images": 128_000, "seed": 2**31 - 1},
    "storage": {"endpoint_url": "http://127.0.0.1:8080", "timeout_seconds": 2.5},
    "data": {"source": "mixture-ring", "global_batch_size": 96, "lanes": 12, "residency": "stream"},
    "model": {"encoder": "deterministic", "discriminator_dropout": 0.2, "output_bias_from_data": True},
    "objective": {"loss": "relativistic", "r1": 0.1, "r2": 1e-7},
    "scale": {"workers": "1:4", "threads": 3, "compile": True},
}


@pytest.mark.parametrize("layer", [{}, CHANGED], ids=["defaults", "changed"])
def test_round_trip_through_json_is_the_identity(layer: dict[str, Any]) -> None:
    """What a checkpoint saves is what a resume reads back."""
    config = from_mapping(layer)
    assert from_mapping(json.loads(json.dumps(config.to_mapping()))) == config


@given(st.floats(min_value=1e-30, max_value=1e30), st.integers(min_value=64, max_value=10**18))
def test_numbers_survive_being_written_as_text(rate: float, images: int) -> None:
    """A number is the same number as JSON, as YAML text and as a command-line word, to the last digit."""
    for kind in (str, lambda v: v):
        config = from_mapping({"optim.lr_d": kind(rate), "run.images": kind(images)})
        assert (config.optim.lr_d, config.run.images) == (rate, images)


def test_later_layers_win_whichever_way_they_spell_a_name() -> None:
    """Defaults < preset < tune < command line, in nested or dotted form and in any mixture of them."""
    nested, dotted = {"optim": {"lr_d": 1.0, "lr_g": 2.0}}, {"optim.lr_d": 3.0}
    assert from_mapping(nested, dotted).optim.lr_d == 3.0
    assert from_mapping(dotted, nested).optim.lr_d == 1.0
    assert from_mapping(nested, dotted).optim.lr_g == 2.0


def test_an_empty_section_changes_nothing() -> None:
    assert from_mapping({"optim": {}, "data": None}) == Config()


# ---- names that do not exist -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("optim.lr_dd", "optim.lr_d"), ("model.lr_g", "optim.lr_g"), ("data.global_batchsize", "data.global_batch_size")],
)
def test_unknown_name_is_refused_with_the_nearest_one(wrong: str, right: str) -> None:
    """A typo never falls back to a default: it names itself and the setting that was probably meant."""
    message = refusal({wrong: 1})
    assert repr(wrong) in message
    assert f"did you mean {right}?" in message
    with pytest.raises(InputError, match=f"did you mean {right}"):
        parse_overrides([f"--{wrong}", "1"])


def test_unknown_name_far_from_all_others_points_to_the_list() -> None:
    message = refusal({"zzz": {"qqq": 1}})
    assert "zzz.qqq" in message
    assert "--help" in message


@pytest.mark.parametrize(
    "layer", [{"nowhere": {}}, {"optim": {"lr_d": {}}}, {"optim": 3}, {"optim": {"lr_d": {"x": 1}}}]
)
def test_nothing_in_a_layer_is_skipped_silently(layer: dict[str, Any]) -> None:
    """Empty mappings, values for whole sections and too deep names are mistakes, not comments."""
    key = next(iter(layer))
    assert key in refusal(layer)


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
    section, name = key.split(".")
    found = getattr(getattr(from_mapping({key: text}), section), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("run.images", True, "a whole number"),
        ("optim.lr_d", True, "a number"),
        ("run.images", 1.5, "a whole number"),
        ("run.images", "many", "a whole number"),
        ("run.images", None, "a whole number"),
        ("optim.lr_d", "nan", "a number"),
        ("optim.lr_d", "1e999", "a number"),
        ("optim.lr_d", 10**400, "a number"),
        ("optim.lr_d", [1e-4], "a number"),
        ("scale.compile", 1, "true or false"),
        ("scale.compile", "yes", "true or false"),
        ("data.url", "", "text"),
        ("data.url", True, "text"),
        ("data.lanes", "few", "a whole number, or none"),
    ],
)
def test_value_of_the_wrong_kind_is_refused_by_name(key: str, value: Any, expected: str) -> None:
    """The sentence names key, value and what is allowed; in particular True is no number and NaN no rate."""
    message = refusal({key: value})
    assert message == f"{key} is {value!r}, but must be {expected}."


def test_choice_outside_the_list_is_refused_with_all_choices_and_the_nearest() -> None:
    message = refusal({"objective.loss": "nonsaturated"})
    for choice in ("nonsaturating", "minimax", "relativistic", "hinge"):
        assert choice in message
    assert message.endswith("did you mean nonsaturating?")
    assert refusal({"objective.loss": "wgan"}).endswith("hinge.")
    assert refusal({"optim.schedule": 3}) == "optim.schedule is 3, but must be 'constant' or 'cosine'."


def test_optional_choice_suggests_too() -> None:
    message = refusal({"data.source": "digit"})
    assert message.endswith("or none; did you mean digits?")


# ---- values out of range -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run.name", "a/b"),
        ("run.name", ".."),
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
        ("model.width", 0),
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
        ("scale.max_failures", -1),
        ("report.log_every", 0),
        ("report.keep_checkpoints", 0),
        ("report.evaluation_samples", 1),
    ],
)
def test_value_out_of_range_is_refused_by_name(key: str, value: Any) -> None:
    message = refusal({key: value})
    assert message.startswith(f"{key} is {from_text(key, value)!r}, but must be ")


def from_text(key: str, value: Any) -> Any:
    """The value as the setting's type holds it, e.g. 0 for a float as 0.0."""
    return float(value) if "float" in str(setting_infos()[key].type) else value


def test_latent_size_zero_says_what_would_do() -> None:
    assert refusal({"model.latent_size": 0}) == "model.latent_size is 0, but must be at least 1."


@pytest.mark.parametrize("value", [0.001, 0.0, 0.499])
def test_small_beta2_is_refused_as_the_papers_notation(value: float) -> None:
    """The paper prints 1 - beta2: copying its 0.001 would silently train with no second-moment memory."""
    message = refusal({"optim.beta2": value})
    assert repr(value) in message
    assert "0.999" in message


@pytest.mark.parametrize("extra", [{"objective.r1": 1.0}, {"objective.r2": 1.0}])
def test_scaled_update_refuses_what_it_cannot_do_exactly(extra: dict[str, Any]) -> None:
    """The one-backward update is wrong for a penalty at every step; that is said, with the way out."""
    message = refusal({"objective.update": "scaled"}, extra)
    assert next(iter(extra)) in message
    assert "'auto'" in message


def test_a_run_shorter_than_one_batch_is_refused() -> None:
    message = refusal({"run.images": 63, "data.global_batch_size": 64})
    assert "63" in message
    assert "64" in message


# ---- batch, lanes, steps -------------------------------------------------------------------------------------------


@given(st.integers(min_value=1, max_value=5000))
def test_default_lanes_are_the_largest_divisor_up_to_32(size: int) -> None:
    lanes = DataConfig(global_batch_size=size).num_lanes()
    assert 1 <= lanes <= 32
    assert size % lanes == 0
    assert not [c for c in range(lanes + 1, 33) if size % c == 0]


def test_given_lanes_are_used_as_they_are() -> None:
    assert DataConfig(global_batch_size=64, lanes=4).num_lanes() == 4


@pytest.mark.parametrize(("size", "lanes"), [(16, 32), (64, 24), (1, 2)])
def test_batch_that_lanes_do_not_divide_is_refused_with_the_arithmetic(size: int, lanes: int) -> None:
    """Too small or uneven: the sentence gives both numbers, the rule, and the lanes that would be used."""
    message = refusal({"data.global_batch_size": size, "data.lanes": lanes})
    assert f"data.global_batch_size is {size}" in message
    assert f"data.lanes is {lanes}" in message
    assert f"multiple of {lanes}" in message
    assert f"({DataConfig(global_batch_size=size).num_lanes()} would be used)" in message


@pytest.mark.parametrize(("images", "size", "steps"), [(64, 64, 1), (127, 64, 1), (128, 64, 2), (64_000, 100, 640)])
def test_a_run_is_the_whole_batches_that_fit(images: int, size: int, steps: int) -> None:
    assert from_mapping({"run.images": images, "data.global_batch_size": size}).total_steps() == steps


# ---- workers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("auto", None), ("0", (0, 0)), ("1", (1, 1)), ("8", (8, 8)), ("1:4", (1, 4)), ("2:2", (2, 2))],
)
def test_worker_count_or_range(text: str, expected: tuple[int, int] | None) -> None:
    assert ScaleConfig(workers=text).worker_range() == expected


@pytest.mark.parametrize("text", ["-1", "two", "4:2", "0:4", "1:", ":4", "1:4:8", "1.5", "²", "1: 4", "auto:2"])
def test_worker_range_that_makes_no_sense_is_refused(text: str) -> None:
    message = refusal({"scale.workers": text})
    assert repr(text) in message
    assert "MIN:MAX" in message
