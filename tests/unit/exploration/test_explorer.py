"""What an explorer answers is what the model computes for a Python program."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ali_dist.errors import InputError
from ali_dist.exploration import pictures
from ali_dist.exploration.explorer import NEIGHBORS, Explorer, Point
from ali_dist.exploration.pictures import read_picture
from ali_dist.exploration.request_parts import parse_point, parse_steps
from ali_dist.inference.features import features_of_samples
from ali_dist.model.data_spec import DataSpec
from tests.helpers.trained import ATTRIBUTES, CLASSES, SIDE


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def gradient(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def point_of(explorer: Explorer, seed: int = 0) -> Point:
    z = torch.randn(explorer.model.latent_size, generator=torch.Generator().manual_seed(seed))
    return Point(z, explorer.usual_condition)


def test_a_random_z_is_the_one_that_its_seed_draws_in_python(explorer, is_valid_png):
    drawn = explorer.draw()
    image = explorer.decode(Point(torch.tensor(drawn["z"]), None))["image"]
    assert is_valid_png(image) == (256, 256)
    expected = explorer.model.tensors.sample(1, seed=drawn["seed"])[0]
    assert image == pictures.picture_url(expected, 256)


def test_a_picture_is_reconstructed_as_in_python(explorer):
    payload = png(gradient(40, 24))
    answer = explorer.encode_picture(payload, None)
    with Image.open(io.BytesIO(payload)) as image:
        mu = explorer.model.encode(image)
        again = explorer.model.tensors.reconstruct(image, use_mean=True)[0]
    assert answer["z"] == pytest.approx(mu[0].tolist(), abs=1e-6)
    assert answer["reconstruction"] == pictures.picture_url(again, 256)
    seen = torch.from_numpy(read_picture(payload, explorer.model.run.spec)) / 255
    assert answer["error"] == pytest.approx(float((seen - again).square().mean()), rel=1e-5)


@pytest.mark.parametrize("spherical", [False, True])
def test_a_walk_is_the_interpolation_of_python(explorer, spherical):
    x = explorer.pool.x[:2]
    ends = [Point(z, None) for z in explorer.model.tensors.encode(x)]
    images = explorer.walk(*ends, 5, spherical=spherical)["images"]
    expected = explorer.model.tensors.interpolate(x[:1], x[1:], steps=5, spherical=spherical, use_mean=True)[0]
    assert images == [pictures.picture_url(step, 96) for step in expected]


def test_the_nearest_images_are_those_of_the_nearest_features(explorer):
    point = point_of(explorer, 3)
    found = explorer.neighbors(point)["neighbors"]
    assert len(found) == NEIGHBORS
    x = explorer.model.tensors.decode(point.z)
    query = features_of_samples(explorer.model.run, "mu+hidden", x, None, device="cpu")
    distances = (explorer.pool.features - query).square().mean(dim=1).sqrt()
    assert [one["place"] for one in found] == distances.argsort()[:NEIGHBORS].tolist()
    assert [one["distance"] for one in found] == pytest.approx(distances.sort().values[:NEIGHBORS].tolist(), rel=1e-4)
    assert all(one["name"] in CLASSES for one in found)


def test_an_image_of_the_data_is_its_own_nearest(explorer):
    features = features_of_samples(explorer.model.run, "mu+hidden", explorer.pool.x[7:8], None, device="cpu")
    distances, places = explorer.pool.nearest(features, 1)
    assert places == [7]
    assert distances == pytest.approx([0], abs=1e-5)


def test_an_image_of_the_data_is_shown_with_its_latent_and_its_class(explorer):
    answer = explorer.show_image(4)
    assert answer["z"] == pytest.approx(explorer.pool.mu[4].tolist(), abs=1e-5)
    assert answer["name"] == CLASSES[int(explorer.pool.y[4])]
    with pytest.raises(InputError, match=r"place is 50, but the images are numbered from 0 to 49"):
        explorer.show_image(50)


def test_each_class_has_a_direction(explorer):
    assert [label.name for label in explorer.labels] == list(CLASSES)
    with_it = explorer.pool.y == 2
    vector = explorer.pool.mu[with_it].mean(0) - explorer.pool.mu[~with_it].mean(0)
    assert torch.allclose(explorer.labels[2].vector, vector, atol=1e-6)


def test_without_data_there_are_components_of_the_prior_and_no_images(without_data):
    assert len(without_data.components.shares) > 0
    assert without_data.labels == ()
    assert without_data.decode(point_of(without_data))["image"].startswith("data:image/png")
    with pytest.raises(InputError, match="data cannot be read"):
        without_data.neighbors(point_of(without_data))


def test_a_conditional_model_decodes_and_walks_under_conditions(by_attributes):
    point = point_of(by_attributes)
    assert by_attributes.labels == ()  # they are in the condition
    assert point.c is not None
    assert point.c.shape == (len(ATTRIBUTES),)
    other = Point(point.z, 1 - point.c)
    assert by_attributes.decode(point)["image"] != by_attributes.decode(other)["image"]
    images = by_attributes.walk(point, other, 3, spherical=False)["images"]
    halfway = by_attributes.model.tensors.decode(point.z, torch.full((1, len(ATTRIBUTES)), 0.5))[0]
    assert images[1] == pictures.picture_url(halfway, 96)
    shown = by_attributes.show_image(5)
    assert shown["c"] == by_attributes.pool.c[5].tolist()
    assert by_attributes.neighbors(point)["neighbors"]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be decoded as PNG, JPEG"),
        (png(gradient(30, 30))[:120], "or is cut short"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(explorer, payload, reason):
    with pytest.raises(InputError, match=rf"^The picture cannot be used \(.*{reason}.*\): give another one\.$"):
        explorer.encode_picture(payload, None)


def test_pictures_of_too_many_pixels_are_refused_before_they_are_decoded(explorer, monkeypatch):
    monkeypatch.setattr("ali_dist.data.shards.pictures.MAX_PIXELS", 999)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="it has 40x25 pixels, but at most"):
        explorer.encode_picture(png_without_load(40, 25), None)


def png_without_load(width: int, height: int) -> bytes:
    """A PNG, made without Pillow."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = zlib.compress(b"".join(b"\0" + bytes(width) for _ in range(height)))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_pictures_are_brought_to_the_data(explorer):
    assert read_picture(png(gradient(50, 20, "RGBA")), explorer.model.run.spec).shape == (1, SIDE, SIDE)
    assert read_picture(png(gradient(50, 20)), DataSpec((3, 16, 16))).shape == (3, 16, 16)
    wide = DataSpec((1, 20, 50))
    assert read_picture(png(gradient(50, 20)), wide).shape == (1, 20, 50)
    with pytest.raises(InputError, match="it has 49x20 pixels, but must have 50x20"):
        read_picture(png(gradient(49, 20)), wide)


NAN = float("nan")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({}, "The request has None as z, but 4 numbers are needed."),
        ({"z": [0, 0]}, "The request has 2 numbers as z, but 4 numbers are needed."),
        ({"z": [0, 0, 0, NAN]}, "The request has something else than finite numbers in z: give these."),
        ({"z": [0, 0, 0, 10**400]}, "The request has something else than finite numbers in z: give these."),
        ({"z": [0, 0, 0, True]}, "The request has something else than finite numbers in z: give these."),
        ({"z": [0, 0, 0, [1]]}, "The request has something else than finite numbers in z: give these."),
        ([], "The request is no point, but must be an object with z."),
    ],
)
def test_points_are_checked(explorer, content, sentence):
    with pytest.raises(InputError) as refused:
        parse_point(explorer.model, content)
    assert str(refused.value) == sentence


@pytest.mark.parametrize("steps", [None, 2, 25, 4.0, True, "5", 10**9])
def test_the_number_of_steps_is_bounded(steps):
    with pytest.raises(InputError, match=r"^steps is .*, but must be a whole number from 3 to 24\.$"):
        parse_steps({"steps": steps})
