"""Settings and data that do not go together are refused in one sentence with the key, its value, and a remedy.

Run: `make test ARGS=tests/unit/training/test_refusals.py`
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ali_dist.config import Config
from ali_dist.config.loading import from_mapping, load_preset, preset_names
from ali_dist.data.shards.index import Index
from ali_dist.distributed import World
from ali_dist.errors import InputError, Stopped
from ali_dist.runs.datasets import open_run_data
from ali_dist.training.labelled_batches import labelled_ids
from ali_dist.training.loop import fit
from ali_dist.training.setup import check_rows
from ali_dist.training.state import build_train_state
from tests.helpers.arrays import make_labelled_arrays, write_arrays
from tests.helpers.runs import StoppingContext, index_without_shards, tiny_config
from tests.helpers.trained import labelled_images

SMALL = {"model.width": 0.1, "scale.device": "cpu"}
TEN_CLASSES = tuple(f"class {k}" for k in range(10))
FORTY_ATTRIBUTES = tuple(f"attribute {k}" for k in range(40))


def load_config(preset: str, **changes: Any) -> Config:
    """Load a preset at small width; names in `changes` have `__` where settings have a dot."""
    return from_mapping(load_preset(preset), SMALL, {key.replace("__", "."): value for key, value in changes.items()})


def assert_is_sentence_with(message: str, *parts: str) -> None:
    """Assert that the message is one whole sentence that has all of `parts`."""
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert ". " not in message, "more than one sentence"
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


# ---- the config alone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "changes", "names"),
    [
        ("mixture-gan", {"objective__cycle_x": 1}, ("objective.cycle_x is 1.0", "'gan'", "to 0")),
        ("mixture-gan", {"objective__cycle_z": 0.5}, ("objective.cycle_z is 0.5", "'gan'", "to 0")),
        ("mixture-gan", {"objective__cycle_samples": 2}, ("objective.cycle_samples is 2.0", "'gan'", "to 0")),
        ("mixture-gan", {"objective__unary": "true"}, ("objective.unary is true", "'gan'", "to false")),
        ("mixture-gan", {"objective__supervised": 1}, ("objective.supervised is 1.0", "'gan'", "to 0")),
        ("mixture-inverse", {"objective__cycle_z": 1}, ("objective.cycle_z is 1.0", "'inverse'", "to 0")),
        ("mixture-inverse", {"objective__r1": 0.1}, ("objective.r1 is 0.1", "'inverse'", "to 0")),
        ("mixture-inverse", {"objective__packing": 2}, ("objective.packing is 2", "'inverse'", "to 1")),
        (
            "mixture-inverse",
            {"model__decoder_from": "none"},
            ("objective.game is 'inverse'", "give model.decoder_from"),
        ),
        ("mixture-gan", {"model__decoder_from": "runs/a"}, ("objective.game is 'gan'", "do not give")),
        (
            "digits-conditional",
            {"model__decoder_from": "runs/a"},
            ("model.condition is 'classes'", "model.decoder_from", "to 'none'"),
        ),
        (
            "digits-semi",
            {"model__condition": "classes"},
            ("model.condition is 'classes'", "objective.supervised (2)", "to 'none'", "to 0"),
        ),
        (
            "digits-semi",
            {"objective__packing": 2},
            ("objective.packing is 2", "objective.supervised is 2", "to 1", "to 0"),
        ),
        # 64 samples in the default's 32 lanes are 2 in each, too few for a pack of 4; in 16 lanes they are 4 in each.
        ("digits", {"objective__packing": 4}, ("objective.packing is 4", "32 lanes", "2 samples", "data.lanes to 16")),
        ("digits", {"objective__packing": 3}, ("objective.packing is 3", "data.global_batch_size to a multiple of 3")),
        ("digits", {"objective__packing": 0}, ("objective.packing is 0", "at least 1")),
        ("digits", {"objective__supervised": -1}, ("objective.supervised is -1.0", "at least 0")),
        ("digits-semi", {"data__labelled": 1}, ("data.labelled is 1", "at least 2")),
        ("digits", {"optim__beta2": 0.001}, ("optim.beta2 is 0.001", "0.999", "0.5")),
        ("digits", {"model__embedding_size": 0}, ("model.embedding_size is 0", "from 1 to")),
        ("digits", {"objective__game": "bigan"}, ("objective.game is 'bigan'", "ali, gan, inverse")),
        ("digits", {"model__condition": "labels"}, ("model.condition is 'labels'", "none, classes, attributes")),
    ],
)
def test_settings_that_contradict_each_other_are_refused(preset, changes, names):
    with pytest.raises(InputError) as refusal:
        load_config(preset, **changes)
    assert_is_sentence_with(str(refusal.value), *names)


def test_the_lanes_that_the_refusal_of_packing_suggests_are_accepted():
    assert load_config("digits", objective__packing=4, data__lanes=16).data.num_lanes() == 16


@pytest.mark.parametrize("preset", preset_names())
def test_the_settings_of_every_preset_go_together(preset):
    assert load_config(preset).to_mapping()


# ---- with the networks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "changes", "labels", "names"),
    [
        ("digits-conditional", {}, {}, ("model.condition is 'classes'", "no labels", "'none'", "data/digits")),
        (
            "digits-conditional",
            {},
            {"attributes": FORTY_ATTRIBUTES},
            ("model.condition is 'classes'", "40 attributes", "use 'attributes'"),
        ),
        (
            "digits",
            {"model__condition": "attributes"},
            {"classes": TEN_CLASSES},
            ("model.condition is 'attributes'", "10 classes", "use 'classes'"),
        ),
        ("digits", {"model__condition": "attributes"}, {}, ("model.condition is 'attributes'", "no labels", "'none'")),
        ("digits-semi", {}, {}, ("objective.supervised is 2", "no class labels", "set it to 0")),
        (
            "digits-semi",
            {},
            {"attributes": FORTY_ATTRIBUTES},
            ("objective.supervised is 2", "no class labels", "set it to 0"),
        ),
        ("digits-semi", {}, {"classes": TEN_CLASSES[:1]}, ("objective.supervised is 2", "set it to 0")),
        ("digits", {"objective__unary": True}, {}, ("objective.unary is true", "objective.r1", "to false", "to 0")),
        (
            "digits",
            {"objective__unary": True, "objective__r1": 0, "objective__r2": 0, "objective__update": "scaled"},
            {},
            ("objective.update is 'scaled'", "objective.unary", "'auto' or 'coupled'"),
        ),
        (
            "digits",
            {"objective__unary": True, "objective__r1": 0, "objective__r2": 0, "objective__update": "penalised"},
            {},
            ("objective.update is 'penalised'", "objective.unary", "'auto' or 'coupled'"),
        ),
        (
            "svhn",
            {"objective__r1": 0.5, "model__output_bias_from_data": False},
            {},
            ("objective.r1 is 0.5 and objective.r2 is 0", "batch norm", "set both to 0"),
        ),
        ("digits", {"model__encoder": "implicit"}, {}, ("model.encoder is 'implicit'", "points", "'gaussian'")),
    ],
)
def test_a_model_that_its_data_or_objective_cannot_train_is_refused(preset, changes, labels, names):
    side = 32 if preset == "svhn" else 16
    index = index_without_shards((3, side, side), **labels)
    with pytest.raises(InputError) as refusal:
        build_train_state(load_config(preset, **changes), index, torch.device("cpu"), World())
    assert_is_sentence_with(str(refusal.value), *names)


# ---- with the data -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of images with classes, attributes and no labels."""
    root = tmp_path_factory.mktemp("images")
    return {kind: labelled_images(root / kind, kind) for kind in ("classes", "attributes", "none")}


@pytest.mark.parametrize(
    ("data", "changes", "names"),
    [
        ("none", {"model__condition": "classes"}, ("model.condition is 'classes'", "no labels")),
        ("none", {"model__condition": "attributes"}, ("model.condition is 'attributes'", "no labels")),
        ("attributes", {"model__condition": "classes"}, ("have 3 attributes", "use 'attributes'")),
        ("classes", {"model__condition": "attributes"}, ("have 4 classes", "use 'classes'")),
        ("none", {"objective__supervised": 1}, ("objective.supervised is 1", "no class labels")),
        ("attributes", {"objective__supervised": 1}, ("objective.supervised is 1", "no class labels")),
        # There are 96 samples, 24 of each of 4 classes.
        ("classes", {"objective__supervised": 1, "data__labelled": 10}, ("data.labelled is 10", "4 classes")),
        (
            "classes",
            {"objective__supervised": 1, "data__labelled": 100},
            ("data.labelled is 100", "up to 96", "has 24"),
        ),
    ],
)
def test_a_run_on_data_without_the_labels_it_needs_does_not_start(tmp_path, images, data, changes, names):
    config = tiny_config(tmp_path, data__url=str(images[data]), data__source="none", **changes)
    with pytest.raises(InputError) as refusal:
        fit(config, StoppingContext())
    assert_is_sentence_with(str(refusal.value), *names)
    if "data__labelled" not in changes:
        assert str(images[data]) in str(refusal.value)
    assert not (tmp_path / "runs").exists(), "a refused run leaves nothing"


def test_a_batch_that_the_data_are_too_few_for_leaves_nothing(tmp_path, images):
    changes = {"data__source": "none", "data__global_batch_size": 192}
    config = tiny_config(tmp_path, data__url=str(images["classes"]), **changes)
    with pytest.raises(InputError) as refusal:
        fit(config, StoppingContext())
    assert_is_sentence_with(str(refusal.value), "192", "96")
    assert not (tmp_path / "runs").exists()


def test_classes_that_the_index_names_but_no_sample_has_are_refused(tmp_path):
    write_arrays(tmp_path / "data" / "train", make_labelled_arrays(24, shape=(1, 8, 8))[0], None, classes=("a", "b"))
    for changes in ({"objective__supervised": 1}, {"model__condition": "classes"}):
        config = tiny_config(tmp_path, data__source="none", **changes)
        with pytest.raises(InputError) as refusal:
            fit(config, StoppingContext())
        assert_is_sentence_with(str(refusal.value), "is", "label", str(tmp_path / "data"))


def test_too_many_labels_for_the_rarest_class_are_refused(tmp_path):
    """There are 8 samples of one class and 4 of the other, so that at most 4 of each can be drawn."""
    write_arrays(
        tmp_path / "data" / "train", make_labelled_arrays(12, shape=(1, 8, 8))[0], [0] * 8 + [1] * 4, classes=("a", "b")
    )
    config = tiny_config(tmp_path, data__source="none", objective__supervised=1, data__labelled=10)
    with pytest.raises(InputError) as refusal:
        labelled_ids(open_run_data(config).train, config)
    assert_is_sentence_with(str(refusal.value), "data.labelled is 10", "2 classes", "up to 8", "has 4")


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ({"objective__supervised": 1}, {"objective__supervised": 0}, "objective.supervised"),
        ({}, {"objective__supervised": 1}, "objective.supervised"),
        ({"objective__supervised": 1}, {"objective__supervised": 1, "data__labelled": 8}, "data.labelled"),
        (
            {"objective__supervised": 1, "data__labelled": 8},
            {"objective__supervised": 1, "data__labelled": 8, "data__labelled_seed": 1},
            "data.labelled_seed",
        ),
        ({}, {"objective__packing": 2}, "objective.packing"),
        (
            {"objective__r1": 0, "objective__r2": 0},
            {"objective__r1": 0, "objective__r2": 0, "objective__unary": True},
            "objective.unary",
        ),
        (
            {"objective__cycle_x": 0, "objective__cycle_samples": 0},
            {"objective__cycle_x": 0, "objective__cycle_samples": 0, "objective__game": "gan"},
            "objective.game",
        ),
        ({}, {"model__condition": "classes"}, "model.condition"),
    ],
)
def test_a_run_is_not_continued_as_another_game(tmp_path, images, before, after, key):
    """Settings that decide the layers of D, or which labels it sees, cannot change within a run."""
    same_data = {"data__url": str(images["classes"]), "data__source": "none"}
    with pytest.raises(Stopped):
        fit(tiny_config(tmp_path, **same_data, **before), StoppingContext(stop_before=1))
    with pytest.raises(InputError) as refusal:
        fit(tiny_config(tmp_path, **same_data, **after), StoppingContext())
    assert_is_sentence_with(str(refusal.value), key, "--run.name")


# ---- batch norm on many workers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rows", "said"),
    [
        ({}, 1, None),
        ({"scale__batch_norm": "local"}, 2, None),
        ({"scale__batch_norm": "local"}, 1, ("scale.batch_norm is 'local'", "'global'", "size is 24")),
        ({"data__global_batch_size": 1, "data__lanes": 1}, 1, ("data.global_batch_size is 1", "at least 2")),
        ({"scale__batch_norm": "local", "scale__micro_batch": 8}, 24, None),
        ({"scale__batch_norm": "local", "scale__micro_batch": 23}, 24, ("scale.micro_batch is 23", "such as 24")),
        ({"scale__batch_norm": "local", "scale__micro_batch": 1}, 24, ("scale.micro_batch is 1", "such as 2.")),
    ],
)
def test_batch_norm_is_refused_a_single_row_of_its_own(changes, rows, said, tmp_path):
    """Of the whole batch, unless statistics are local."""
    config = tiny_config(tmp_path, **changes)
    index = Index(
        encoding="raw", dtype="uint8", shape=(1, 8, 8), shards=(), mean=(0.5,), std=(0.5,), pixel_mean=(0.5,) * 64
    )
    state = build_train_state(config, index, torch.device("cpu"), World())
    if said is None:
        check_rows(config, state.ali, slice(0, rows), World(size=24))
        return
    with pytest.raises(InputError) as refusal:
        check_rows(config, state.ali, slice(0, rows), World(size=24))
    assert all(part in str(refusal.value) for part in said)
