"""How a Config is made: from command-line overrides, preset files, and presets that build on others.

Run: `make test ARGS=tests/unit/config/test_loading.py`
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset, parse_overrides, preset_names, read_preset
from ali_dist.errors import InputError


def write_file(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


# ---- the command line ----------------------------------------------------------------------------------------------


def test_overrides_are_read_in_both_spellings() -> None:
    """Values keep their '=', may be negative or empty, and the last of several wins."""
    words = ["--run.name", "x", "--data.url=s3://a/b?c=d", "--optim.lr_d", "-1", "--run.name=y"]
    assert parse_overrides(words) == {"run.name": "y", "data.url": "s3://a/b?c=d", "optim.lr_d": "-1"}
    assert parse_overrides([]) == {}
    assert parse_overrides(["--run.name="]) == {"run.name": ""}


@pytest.mark.parametrize(
    "words", [["--optim.lr_d"], ["--optim.lr_d", "--run.name", "x"], ["--optim.lr_d", "--dry-run"]]
)
def test_a_setting_without_a_value_is_refused_with_what_it_takes(words: list[str]) -> None:
    """The next option is never swallowed as a value."""
    with pytest.raises(InputError, match=r"--optim\.lr_d needs a value: a number\."):
        parse_overrides(words)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("optim.lr_D", "optim.lr_d"), ("Optim.LR_G", "optim.lr_g"), ("lr_D", "optim.lr_d"), ("data.URL", "data.url")],
)
def test_another_case_is_the_nearest_mistake(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=rf"did you mean {meant}\?$"):
        parse_overrides([f"--{name}", "1"])


@pytest.mark.parametrize("words", [["run.name", "x"], ["-x"], ["--run.name", "x", "y"]])
def test_a_stray_word_is_refused(words: list[str]) -> None:
    with pytest.raises(InputError, match="was not expected"):
        parse_overrides(words)


def test_overrides_change_the_settings_that_they_name_and_no_others() -> None:
    config = from_mapping({"optim": {"lr_g": 2e-4}}, parse_overrides(["--optim.lr_d", "1e-3"]))
    expected = Config(optim=dataclasses.replace(Config().optim, lr_d=1e-3, lr_g=2e-4))
    assert config == expected


# ---- presets -------------------------------------------------------------------------------------------------------


def test_every_shipped_preset_is_valid() -> None:
    assert "digits" in preset_names(), "the default preset ships"
    for name in preset_names():
        from_mapping(load_preset(name))


def test_values_in_a_preset_file_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    """YAML 1.1 reads 3e-4 as text, 1:4 as 64 and 010 as 8; none of that may reach a run."""
    text = "optim:\n  lr_d: 3e-4\nscale:\n  workers: 1:4\nrun:\n  seed: 010\n  name: 1.10\ndata:\n  lanes: null\n"
    config = from_mapping(load_preset(write_file(tmp_path / "mine.yaml", text)))
    assert config.optim.lr_d == 3e-4
    assert config.scale.workers == "1:4"
    assert (config.run.seed, config.run.name, config.data.lanes) == (10, "1.10", None)


def test_a_layer_with_data_of_its_own_drops_the_built_in_source_below_it(tmp_path: Path) -> None:
    """Built-in data are written to the place that comes with them, or where they are asked for by name."""

    def source(text: str) -> str | None:
        return from_mapping(load_preset(write_file(tmp_path / "mine.yaml", f"base: digits\n{text}"))).data.source

    assert source("optim: {lr_d: 1}\n") == "digits"
    assert source("data: {url: ./data/digits/}\n") == "digits"
    assert source("data: {url: pictures}\n") is None
    assert source("data: {url: s3://bucket/digits}\n") is None
    assert source("data: {url: pictures, source: shapes}\n") == "shapes"


def test_a_preset_says_what_its_files_ask_for_and_what_it_is_made_for(tmp_path: Path) -> None:
    shipped = read_preset("digits-paper")
    assert (shipped.users_own, shipped.source) == (frozenset(), "digits")
    own = read_preset(write_file(tmp_path / "mine.yaml", "base: digits\ndata: {url: pictures, image_size: 8}\n"))
    assert own.users_own >= {"data.url", "data.image_size"}
    assert "model.latent_size" not in own.users_own
    assert own.source == "digits"


def test_a_preset_overrides_its_base_setting_by_setting(tmp_path: Path) -> None:
    """A base is looked up beside the file and may have a base itself; settings may be nested or dotted."""
    write_file(tmp_path / "low.yml", "optim: {lr_d: 1, lr_g: 1, beta1: 0.1}\nrun: {name: low}\n")
    write_file(tmp_path / "mid.yaml", "base: low.yml\noptim.lr_d: 2\noptim.lr_g: 2\n")
    top = write_file(tmp_path / "top.yaml", "base: mid.yaml\noptim:\n  lr_d: 3\n")
    config = from_mapping(load_preset(top))
    assert (config.optim.lr_d, config.optim.lr_g, config.optim.beta1, config.run.name) == (3, 2, 0.1, "low")


@pytest.mark.parametrize("text", ["base: self.yaml\n", "base: other.yaml\n"], ids=["itself", "ring"])
def test_presets_that_build_on_each_other_in_a_ring_are_refused(tmp_path: Path, text: str) -> None:
    write_file(tmp_path / "other.yaml", "base: self.yaml\n")
    with pytest.raises(InputError, match="builds on itself"):
        load_preset(write_file(tmp_path / "self.yaml", text))


@pytest.mark.parametrize("empty", ["", "~", "null", "Null"])
def test_an_empty_value_in_a_preset_is_none_where_there_is_a_none_and_else_refused(tmp_path: Path, empty: str) -> None:
    path = write_file(tmp_path / "mine.yaml", f"data:\n  lanes: {empty}\noptim:\n")
    assert from_mapping({"data.lanes": 4}, load_preset(path)).data.lanes is None
    with pytest.raises(InputError, match="optim.lr_d is given no value, but must be a number: give one, or leave"):
        from_mapping(load_preset(write_file(tmp_path / "rate.yaml", f"optim: {{lr_d: {empty}}}\n")))


def nested_aliases(levels: int) -> str:
    """YAML of few lines that stands for 2^levels values."""
    lines = [f"a{level}: &a{level} [*a{level - 1}, *a{level - 1}]\n" for level in range(1, levels)]
    return "a0: &a0 [1, 1]\n" + "".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 5000, "nested more than 20 levels deep"),
        ("a: " + "{a: " * 5000, "nested more than 20 levels deep"),
        (nested_aliases(26), "stands for more than 10,000 values"),
        ("a: &a [*a]", "cannot be read as YAML"),
        ("", "no mapping"),
        ("- 1\n- 2\n", "no mapping"),
        ("optim: {lr_d: [\n", "cannot be read as YAML: in line 2, column 1"),
        ("optim: {lr_d: 1, lr_d: 2}\n", "'lr_d' is given twice"),
        ("run: {seed: 1}\nrun: {name: x}\n", "in line 2, column 1 (run: {name: x}): 'run' is given twice"),
        ("run: {seed: 1}\noptim:\n  lr_d: @x\n", "in line 3, column 9 (lr_d: @x): while scanning"),
        ("a: !!python/object/apply:os.getcwd []\n", "no setting 'a'"),
        ("base: [a, b]\n", "the name of one preset"),
        ("base: nothing-like-this\n", "no preset 'nothing-like-this'"),
    ],
)
def test_a_broken_preset_file_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    """Torn YAML, repeated names and tags that would run code are refused in one sentence."""
    path = write_file(tmp_path / "broken.yaml", text)
    with pytest.raises(InputError) as caught:
        from_mapping(load_preset(path))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_binary_preset_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture.yaml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        load_preset(str(path))


@pytest.mark.parametrize("name", ["", "no-such-preset", "../config"])
def test_an_unknown_preset_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(InputError, match="There is no preset") as caught:
        load_preset(name)
    assert all(known in str(caught.value) for known in preset_names())


def test_a_missing_preset_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_preset(str(tmp_path / "absent.yaml"))
