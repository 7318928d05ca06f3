"""A trained model is loaded without its data and is the one that was saved; what cannot be loaded is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from ali_dist.config import StorageConfig
from ali_dist.errors import InputError
from ali_dist.inference.load import load_run
from tests.helpers.runs import find_newest_checkpoint, load_weights, rewrite_state
from tests.helpers.trained import ATTRIBUTES, CLASSES, labelled_images, run_folder, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return trained(folder, labelled_images(folder / "images", "classes"), report__checkpoint_every=96)


@pytest.fixture
def copied(run, tmp_path) -> Path:
    """A copy of the run folder that a test may damage."""
    return Path(shutil.copytree(run_folder(run), tmp_path / "runs" / "tiny"))


def encoded(path: Path, **options) -> torch.Tensor:
    loaded = load_run(str(path), **options)
    x = torch.linspace(0, 1, 5 * 256).view(5, 1, 16, 16)
    with torch.inference_mode():
        return torch.cat([loaded.model.encode(x)[0], loaded.model.decode(torch.ones(5, 4)).flatten(1)], dim=1)


def test_loading_needs_neither_the_data_nor_the_optimizer(copied):
    spec = load_run(str(copied)).spec
    assert (spec.shape, spec.dtype, spec.classes, spec.attributes) == ((1, 8, 8), "uint8", CLASSES, ())
    newest = max((copied / "checkpoints").iterdir())
    (newest / "optimizer.safetensors").unlink()
    config = json.loads((newest / "state.json").read_text())["config"]
    assert Path(config["data"]["url"]).exists()  # the next lines show that it is not looked at
    rewrite_state(copied, lambda state: state["config"]["data"].update(url="/nowhere"))
    assert load_run(str(copied)).metadata.step == 8


def test_the_weights_are_those_of_the_checkpoint(run):
    for name, file in (("ema", "ema"), ("raw", "model")):
        loaded = load_run(str(run_folder(run)), weights=name)
        stored = load_weights(run, file)
        mine = loaded.model._encoder.state_dict()
        assert all(torch.equal(mine[key], stored[f"encoder.{key}"]) for key in mine)
        assert loaded.weights == name


def test_averaged_and_last_weights_differ_and_the_average_is_the_default(run):
    folder = run_folder(run)
    assert torch.equal(encoded(folder), encoded(folder, weights="ema"))
    assert not torch.equal(encoded(folder), encoded(folder, weights="raw"))


def test_an_average_that_was_never_kept_is_refused(run, tmp_path):
    plain = trained(tmp_path, Path(run.data.url), optim__ema_half_life=0)
    assert load_run(str(run_folder(plain))).weights == "raw"
    with pytest.raises(InputError, match="ema_half_life"):
        load_run(str(run_folder(plain)), weights="ema")


def test_a_run_is_found_by_folder_name_or_checkpoint(run, monkeypatch):
    folder = run_folder(run)
    monkeypatch.chdir(folder.parent.parent)
    paths = [str(folder), f"{folder}/", "tiny", "runs/tiny", f"{folder}/checkpoints", str(find_newest_checkpoint(run))]
    assert {load_run(path).metadata.step for path in paths} == {8}
    first = folder / "checkpoints" / "step-000000004"
    assert load_run(str(first)).metadata.images_seen == 96


def test_a_torn_checkpoint_gives_way_to_the_one_before_and_is_reported(copied, capsys):
    newest = max((copied / "checkpoints").iterdir())
    victim = newest / "model.safetensors"
    victim.write_bytes(victim.read_bytes()[:-7])
    assert load_run(str(copied)).metadata.step == 4
    assert "step-000000008" in capsys.readouterr().err
    with pytest.raises(InputError, match="model.safetensors"):
        load_run(str(newest))


def test_a_checkpoint_that_names_no_split_of_its_metrics_is_loaded(copied):
    """Those that were saved before runs chose on one split and reported on another do not."""
    rewrite_state(copied, lambda state: state.pop("metrics_split"))
    metadata = load_run(str(copied)).metadata
    assert (metadata.step, metadata.metrics_split) == (8, "")


def test_a_checkpoint_without_a_data_spec_falls_back_on_the_data(copied):
    rewrite_state(copied, lambda state: state.pop("data"))
    assert load_run(str(copied)).spec.classes == CLASSES
    rewrite_state(copied, lambda state: state["config"]["data"].update(url="/nowhere"))
    with pytest.raises(InputError, match="/nowhere"):
        load_run(str(copied))


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("runs/tinny", ["tinny", "did you mean tiny"]),
        ("tinny", ["tinny", "did you mean tiny"]),
        ("elsewhere/tiny", ["elsewhere", "ali_dist.train"]),
        ("runs/tiny/checkpoints/step-000000005", ["step-000000005", "step-000000008"]),
        ("", ["RUN"]),
    ],
)
def test_a_run_that_is_not_there_is_named_with_the_nearest(path, names, copied, monkeypatch):
    monkeypatch.chdir(copied.parent.parent)
    with pytest.raises(InputError) as refusal:
        load_run(path)
    for name in names:
        assert name in str(refusal.value)


def test_a_run_without_a_complete_checkpoint_says_so(copied):
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(InputError, match="no complete checkpoint"):
        load_run(str(copied))


def test_settings_of_another_version_are_one_sentence(copied):
    rewrite_state(copied, lambda state: state["config"]["optim"].update(lookahead=3))
    with pytest.raises(InputError, match="another version") as refusal:
        load_run(str(copied))
    assert "optim.lookahead" in str(refusal.value)


def test_weights_that_do_not_fit_their_config_are_one_sentence(copied):
    rewrite_state(copied, lambda state: state["config"]["model"].update(latent_size=5))
    with pytest.raises(InputError, match="do not fit"):
        load_run(str(copied))


def test_a_damaged_data_spec_is_named(copied):
    rewrite_state(copied, lambda state: state["data"].pop("shape"))
    with pytest.raises(InputError, match="shape"):
        load_run(str(copied), StorageConfig())


def test_a_conditional_model_knows_its_conditions(tmp_path):
    data = labelled_images(tmp_path / "images", "attributes")
    loaded = load_run(str(run_folder(trained(tmp_path, data, model__condition="attributes"))))
    assert loaded.spec.attributes == ATTRIBUTES
    assert loaded.model.condition_size == len(ATTRIBUTES)
    c = torch.eye(3)
    with torch.inference_mode():
        x = loaded.model.decode(torch.ones(3, 4), c)
    assert not torch.equal(x[0], x[1])  # the embedding is loaded and used
    stored = load_weights(trained(tmp_path, data, model__condition="attributes"), "ema")
    assert torch.equal(loaded.model._embedding.weight, stored["embedding.weight"])
