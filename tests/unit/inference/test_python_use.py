"""ali_dist.load: what the commands compute, for arrays, pictures and tensors; what does not fit is named."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ali_dist
from ali_dist import encode, generate
from ali_dist.config import Config
from ali_dist.errors import InputError
from ali_dist.evaluation import batched
from ali_dist.launchers.local import run_local
from tests.helpers.arrays import write_arrays
from tests.helpers.runs import find_newest_checkpoint, tiny_config
from tests.helpers.trained import CLASSES, COUNTS, SIDE, labelled_images, run_folder, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("python")


@pytest.fixture(scope="module")
def config(folder):
    return trained(folder, labelled_images(folder / "images", "classes"), "plain")


@pytest.fixture(scope="module")
def model(config):
    return ali_dist.load(run_folder(config), device="cpu")


@pytest.fixture(scope="module")
def by_class(folder):
    config = trained(folder, folder / "images", "by-class", model__condition="classes")
    return ali_dist.load(run_folder(config), device="cpu")


@pytest.fixture(scope="module")
def by_attributes(folder):
    data = labelled_images(folder / "attributes", "attributes")
    config = trained(folder, data, "by-attributes", model__condition="attributes")
    return ali_dist.load(run_folder(config), device="cpu")


@pytest.fixture(scope="module")
def points(folder):
    config = tiny_config(folder, "mixture", run__name="points", data__url=str(folder / "mixture"))
    run_local(config)
    return ali_dist.load(run_folder(config), device="cpu")


@pytest.fixture(scope="module")
def color(folder):
    return ali_dist.load(run_folder(color_config(folder)), device="cpu")


def color_config(folder: Path) -> Config:
    """A run on 32x32 pictures of three channels."""
    rng = np.random.default_rng(0)
    write_arrays(folder / "color" / "train", rng.integers(0, 256, (48, 3, 32, 32), dtype=np.uint8), None)
    return trained(folder, folder / "color", "color", preset="cifar10", run__images=24, model__width=0.06)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)


def drawn_images(split: str) -> np.ndarray:
    """The images of a split, as `labelled_images` draws them, [N, H, W]."""
    count = COUNTS[split]
    return np.random.default_rng(count).integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8)[:, 0]


def test_importing_the_package_loads_no_torch_and_loading_needs_nothing_else():
    code = "import sys, ali_dist; print(sorted({'torch', 'numpy', 'PIL', 'ali_dist.inference'} & set(sys.modules)))"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.perf_counter() - start < 5  # of which Python itself takes most; torch alone takes longer on a busy core


def test_the_same_image_may_be_given_in_every_form(model):
    x = images(3)
    expected = model.encode(x)
    assert expected.shape == (3, model.latent_size)
    assert expected.dtype == np.float32
    forms = {
        "channel axis": x[..., None],
        "floats": x / 255,
        "float32": (x / 255).astype(np.float32),
        "tensor": torch.from_numpy(x)[:, None],
        "tensor without channels": torch.from_numpy(x),
        "float tensor": torch.from_numpy(x)[:, None] / 255,
        "list of arrays": list(x),
        "list of PIL images": [Image.fromarray(one) for one in x],
        "a mixed list": [x[0], Image.fromarray(x[1]), torch.from_numpy(x[2])],
        "read-only, reversed twice": np.flip(np.flip(x, 2), 2),
    }
    for name, form in forms.items():
        assert np.allclose(model.encode(form), expected, atol=1e-5), name
    for one in (
        x[0],
        x[0][..., None],
        torch.from_numpy(x[0]),
        Image.fromarray(x[0]),
        Image.fromarray(x[0]).convert("RGB"),
    ):
        assert np.allclose(model.encode(one), expected[:1], atol=1e-5)


def test_color_images_have_their_channels_last_in_arrays_and_first_in_tensors(color):
    x = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = color.encode(x)
    assert np.allclose(color.encode(torch.from_numpy(x).permute(0, 3, 1, 2)), expected, atol=1e-5)
    assert np.allclose(color.encode([Image.fromarray(one) for one in x]), expected, atol=1e-5)
    assert color.sample(2).shape == (2, *color.sample_shape) == (2, 32, 32, 3)
    with pytest.raises(InputError, match=r"\[2, 3, 32, 32\].*yours looks like \[N, C, H, W\]"):
        color.encode(x.transpose(0, 3, 1, 2))
    with pytest.raises(InputError, match=r"tensors are \[N, C, H, W\] with C = 3, and yours looks like \[N, H, W, C\]"):
        color.encode(torch.from_numpy(x))


def test_features_are_those_of_the_command(config, model, tmp_path):
    for features in ("mu", "mu+layers", "joint"):
        words = [str(run_folder(config)), "--features", features, "--device", "cpu", "--out", str(tmp_path / "f.npz")]
        assert encode.main(words) == 0
        with np.load(tmp_path / "f.npz") as file:
            expected = file["features"]
        assert np.allclose(model.encode(drawn_images("train"), features=features), expected, atol=1e-5)


def test_samples_are_those_of_the_command(config, model, tmp_path):
    words = ["--count", "5", "--seed", "3", "--single", "--device", "cpu", "--out", str(tmp_path)]
    assert generate.main([str(run_folder(config)), *words]) == 0
    files = sorted((tmp_path / "samples-seed3").iterdir())
    drawn = np.stack([np.asarray(Image.open(file)) for file in files])
    assert np.array_equal(model.sample(5, seed=3), drawn)


def test_reconstructions_and_interpolations_are_those_of_the_command(config, model, tmp_path):
    for what in ("reconstructions", "interpolations"):
        words = ["--what", what, "--count", "3", "--seed", "1", "--single", "--device", "cpu", "--out", str(tmp_path)]
        assert generate.main([str(run_folder(config)), *words]) == 0

    def read(pattern: str) -> np.ndarray:
        return np.stack([np.asarray(Image.open(file)) for file in sorted(tmp_path.glob(pattern))])

    originals = read("reconstructions-seed1/*-original.png")
    assert np.array_equal(model.reconstruct(originals, seed=1), read("reconstructions-seed1/*-reconstruction.png"))
    encoded = json.loads((tmp_path / "interpolations-seed1.json").read_text())["images"]
    ends = drawn_images("test")[[image["id"] for image in encoded]]
    walked = read("interpolations-seed1/*.png").reshape(3, -1, SIDE, SIDE)
    assert np.array_equal(model.interpolate(ends[::2], ends[1::2], seed=1), walked)


def test_any_number_of_samples_is_worked_on_in_batches(model, monkeypatch):
    x = images(11)
    whole = [model.encode(x, sample=True, seed=2), model.reconstruct(x, seed=2), model.score(x), model.sample(11)]
    monkeypatch.setattr(batched, "BATCH", 4)
    parts = [model.encode(x, sample=True, seed=2), model.reconstruct(x, seed=2), model.score(x), model.sample(11)]
    for a, b in zip(whole, parts, strict=True):
        assert np.allclose(a.astype(float), b.astype(float), atol=1 if a.dtype == np.uint8 else 1e-4)
    none = images(0)
    assert model.encode(none).shape == (0, model.latent_size)
    assert model.encode([]).shape == (0, model.latent_size)
    assert model.reconstruct(none).shape == (0, SIDE, SIDE)
    assert model.score(none).shape == (0,)
    assert model.sample(0).shape == (0, SIDE, SIDE)
    assert model.interpolate(none, none).shape == (0, 11, SIDE, SIDE)


def test_a_seed_decides_what_is_random_and_torch_s_own_draws_are_left_alone(model):
    x = images(4)
    state = torch.random.get_rng_state()
    for draw in (
        lambda seed: model.sample(4, seed=seed),
        lambda seed: model.encode(x, sample=True, seed=seed),
        lambda seed: model.reconstruct(x, seed=seed),
        lambda seed: model.interpolate(x[:2], x[2:], seed=seed),
    ):
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert np.array_equal(model.reconstruct(x, use_mean=True, seed=1), model.reconstruct(x, use_mean=True, seed=2))


def test_decoding_the_mean_is_the_reconstruction_of_the_mean(model):
    x = images(5)
    assert np.array_equal(model.decode(model.encode(x)), model.reconstruct(x, use_mean=True))
    assert np.array_equal(model.decode(model.encode(x)[0]), model.reconstruct(x[:1], use_mean=True))
    ends = model.interpolate(x[:2], x[2:4], steps=3, use_mean=True)
    assert ends.shape == (2, 3, SIDE, SIDE)
    assert np.array_equal(ends[:, 0], model.reconstruct(x[:2], use_mean=True))
    assert np.array_equal(ends[:, 2], model.reconstruct(x[2:4], use_mean=True))
    circle = model.interpolate(x[:2], x[2:4], steps=3, use_mean=True, spherical=True)
    assert np.array_equal(circle[:, 0], ends[:, 0])


def test_results_may_be_tensors_that_take_part_in_training(model):
    x = model.tensors.sample(3)
    assert (x.dtype, x.shape, x.min() >= 0, x.max() <= 1) == (torch.float32, (3, 1, SIDE, SIDE), True, True)
    z = model.tensors.encode(x)
    weight = torch.ones(model.latent_size, requires_grad=True)
    (z * weight).sum().backward()
    assert torch.allclose(weight.grad, z.sum(0))


def test_a_score_is_the_discriminator_s_logit_of_the_pair(model):
    x = images(4)
    z = model.encode(x)
    with torch.inference_mode():
        unit = model.run.space.unit_from_stored(torch.from_numpy(x)[:, None])
        expected = model.run.model.score(unit, torch.from_numpy(z))
    assert np.allclose(model.score(x), expected.numpy(), atol=1e-5)
    assert np.allclose(model.score(x, z), expected.numpy(), atol=1e-5)
    assert not np.allclose(model.score(x, z + 1), expected.numpy(), atol=1e-5)


def test_arrays_of_another_size_are_resized_with_a_warning_and_pictures_as_prepare_does(model):
    large = np.full((1, 40, 40), 77, dtype=np.uint8)
    with pytest.warns(UserWarning, match="40x40 are shrunk to 16x16.*are 8x8"):
        z = model.encode(large)
    assert np.allclose(z, model.encode(np.full((1, SIDE, SIDE), 77, dtype=np.uint8)), atol=1e-3)
    wide = Image.new("RGB", (50, 30), (77, 77, 77))
    assert np.allclose(model.encode(wide), z, atol=1e-3)
    assert wide.size == (50, 30)
    with pytest.warns(UserWarning, match="40x40"):
        assert len(model.encode([large[0], images(1)[0]])) == 2


def test_a_class_is_given_by_name_by_number_or_for_each_sample(by_class):
    x = images(4)
    expected = by_class.encode(x, "two")
    assert not np.allclose(expected, by_class.encode(x, "one"))
    one_hot = np.eye(4, dtype=np.float32)[2]
    for form in (
        2,
        np.int64(2),
        torch.tensor(2),
        [2] * 4,
        ["two"] * 4,
        np.full(4, 2),
        one_hot,
        np.tile(one_hot, (4, 1)),
    ):
        assert np.array_equal(by_class.encode(x, form), expected)
    turns = by_class.sample(5, seed=1)
    assert np.array_equal(turns, by_class.sample(5, [0, 1, 2, 3, 0], seed=1))
    assert np.array_equal(by_class.reconstruct(x, [0, 1, 2, 3])[1], by_class.reconstruct(x, "one")[1])
    path = by_class.interpolate(x[:1], x[:1], "zero", last_condition="three", steps=3, use_mean=True)
    assert np.array_equal(path[:, 0], by_class.reconstruct(x[:1], "zero", use_mean=True))
    assert np.array_equal(path[:, 2], by_class.reconstruct(x[:1], "three", use_mean=True))
    assert by_class.score(x, condition="one").shape == (4,)


def test_attributes_are_given_by_name_and_the_others_are_0(by_attributes):
    z = np.ones((2, by_attributes.latent_size))
    one = by_attributes.decode(z, {"Male": 1})
    assert np.array_equal(one, by_attributes.decode(z, np.array([0.0, 1.0, 0.0])))
    assert np.array_equal(one[:1], by_attributes.decode(z, [{"Male": True}, {}])[:1])
    assert by_attributes.sample(2, {"Smiling": 1}).shape == (2, SIDE, SIDE)


def test_points_are_floats_and_stay_floats(points):
    x = points.sample(4)
    assert (x.shape, x.dtype, points.sample_shape) == ((4, 2), np.float32, (2,))
    assert points.encode(x).shape == (4, points.latent_size)
    assert points.reconstruct(list(x)).shape == (4, 2)
    assert points.encode(x[0]).shape == (1, points.latent_size)
    for wrong in (x[:, :1], x.astype(np.uint8), Image.new("L", (8, 8)), np.array([[np.inf, 0.0]])):
        with pytest.raises(InputError):
            points.encode(wrong)


def bad(value: float) -> np.ndarray:
    x = images(3) / 255
    x[1, 2, 3] = value
    return x


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (bad(200.0), ["sample 1", "200", "uint8"]),
        (bad(-0.5), ["sample 1", "-0.5"]),
        (bad(float("nan")), ["sample 1", "nan"]),
        (images(2).astype(np.int64), ["int64", "uint8"]),
        (images(2).astype(np.uint16), ["uint16"]),
        (images(2) > 3, ["bool"]),
        (torch.ones(2, 1, SIDE, SIDE, dtype=torch.int32), ["int32"]),
        (np.zeros((2, SIDE, SIDE, 3), np.uint8), ["[2, 8, 8, 3]", "1 channel", "8x8"]),
        (np.zeros((2, 0, SIDE), np.uint8), ["[2, 0, 8]"]),
        (np.zeros(SIDE, np.uint8), ["[8]"]),
        ([images(1)[0], np.zeros((SIDE, SIDE, 3), np.uint8)], ["Sample 1 of the list", "[8, 8, 3]"]),
        ([images(1)[0], "photo.png"], ["Sample 1 of the list", "str"]),
        ([images(1)[0], images(2)], ["Sample 1 of the list", "2 samples"]),
        ([Image.new("L", (8, 8)), Image.new("F", (9, 9))], ["Sample 1 of the list", "floating-point"]),
        ("photo.png", ["str", "NumPy"]),
        (None, ["NoneType"]),
    ],
)
def test_samples_that_do_not_fit_are_named_with_their_place(given, names, model):
    with pytest.raises(InputError) as refusal:
        model.encode(given)
    for name in names:
        assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda m: m.decode(np.ones((2, 3))), ["[2, 3]", "[N, 4]"]),
        (lambda m: m.decode(np.full((2, 4), np.nan)), ["Row 0"]),
        (lambda m: m.decode("z"), ["z is no array"]),
        (lambda m: m.sample(-1), ["count", "-1"]),
        (lambda m: m.sample(2.5), ["count"]),
        (lambda m: m.sample(2, seed=-3), ["seed"]),
        (lambda m: m.sample(2, "one"), ["not conditional"]),
        (lambda m: m.encode(images(1), features="mu+hiden"), ["'mu+hiden'", "did you mean mu+hidden"]),
        (lambda m: m.interpolate(images(2), images(3)), ["2 samples", "3"]),
        (lambda m: m.interpolate(images(2), images(2), steps=1), ["steps"]),
        (lambda m: m.score(images(2), np.ones((3, 4))), ["2 samples", "3"]),
    ],
)
def test_other_arguments_that_do_not_fit_are_named(call, names, model):
    with pytest.raises(InputError) as refusal:
        call(model)
    for name in names:
        assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("condition", "names"),
    [
        (None, ["conditional on classes", "'zero'"]),
        ("too", ["'too'", "did you mean two"]),
        (4, ["'4'", "zero, one, two, three"]),
        (-1, ["'-1'"]),
        (True, ["True"]),
        ([0, 1], ["2 entries for 3 samples"]),
        ([0, 1, "nine"], ["'nine'"]),
        ([0, 1, 2.5], ["Entry 2", "2.5"]),
        ({"one": 1}, ["classes"]),
        (np.ones((3, 5)), ["[3, 5]", "[4]"]),
        (np.full((3, 4), np.nan), ["finite"]),
    ],
)
def test_conditions_that_do_not_fit_are_named(condition, names, by_class):
    with pytest.raises(InputError) as refusal:
        by_class.encode(images(3), condition)
    for name in names:
        assert name in str(refusal.value)


@pytest.mark.parametrize(("condition", "name"), [({"Smyling": 1}, "Smiling"), ({"Male": 2}, "2"), (None, "Smiling")])
def test_attributes_that_do_not_fit_are_named(condition, name, by_attributes):
    with pytest.raises(InputError, match=name):
        by_attributes.sample(2, condition)


def test_a_run_is_found_by_path_by_name_and_by_checkpoint(config, model, monkeypatch):
    folder = run_folder(config)
    monkeypatch.chdir(folder.parent.parent)
    step = int(find_newest_checkpoint(config).name.removeprefix("step-"))
    z = model.encode(images(2))
    for path, checkpoint in (("plain", None), ("runs/plain/", None), ("plain", step), (folder, f"step-{step:09d}")):
        assert np.array_equal(ali_dist.load(path, checkpoint=checkpoint, device="cpu").encode(images(2)), z)
    assert not np.array_equal(ali_dist.load("plain", weights="raw").encode(images(2)), z)
    with pytest.raises(InputError, match="step-000000005"):
        ali_dist.load("plain", checkpoint=5)
    with pytest.raises(InputError, match="plane.*did you mean plain"):
        ali_dist.load("runs/plane")
    for wrong in ({"checkpoint": "newest"}, {"weights": "averaged"}, {"device": "gpu"}, {"device": "cuda:99"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))} is '{next(iter(wrong.values()))}'"):
            ali_dist.load("plain", **wrong)


def test_a_model_says_what_it_is(model, by_class):
    assert repr(model) == ("<TrainedModel 'plain': images 8x8, 4 latents, averaged weights after 192 images, on cpu>")
    assert "conditional on classes" in repr(by_class)
    assert (by_class.condition, by_class.classes, by_class.attributes) == ("classes", CLASSES, ())
