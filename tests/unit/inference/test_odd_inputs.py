"""What a Python program may give by mistake is one sentence, and never a traceback of torch or a silent reading."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import ali_dist
from ali_dist.errors import InputError
from tests.helpers.trained import SIDE, labelled_images, run_folder, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("odd")


@pytest.fixture(scope="module")
def run(folder):
    return run_folder(trained(folder, labelled_images(folder / "images", "classes"), "plain"))


@pytest.fixture(scope="module")
def model(run):
    return ali_dist.load(run, device="cpu")


@pytest.fixture(scope="module")
def by_attributes(folder):
    data = labelled_images(folder / "attributes", "attributes")
    return ali_dist.load(run_folder(trained(folder, data, "by-attributes", model__condition="attributes")))


def odd_arrays(shape):
    dense = torch.zeros(shape)
    return {
        "sparse": dense.to_sparse(),
        "meta": dense.to("meta"),
        "complex": dense + 0j,
        "complex array": np.zeros(shape, np.complex64),
        "masked": np.ma.masked_array(np.zeros(shape), np.ones(shape)),
        "dates": np.zeros(shape, "M8[s]"),
        "words": np.full(shape, "1"),
    }


@pytest.mark.parametrize("kind", odd_arrays((1, 1)))
def test_an_array_of_an_odd_kind_is_refused_wherever_it_is_given(model, by_attributes, kind):
    pictures = by_attributes.sample(2, {})
    with pytest.raises(InputError):
        model.encode(odd_arrays((*model.tensors.sample(2).shape,))[kind])
    with pytest.raises(InputError):
        model.decode(odd_arrays((2, model.latent_size))[kind])
    with pytest.raises(InputError):
        by_attributes.encode(pictures, odd_arrays((2, len(by_attributes.attributes)))[kind])


def test_latents_of_lists_that_want_gradients_are_refused(model):
    with pytest.raises(InputError, match="no array of numbers"):
        model.decode([torch.zeros(model.latent_size, requires_grad=True)] * 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.bool])
def test_a_table_of_attributes_may_be_of_any_type_of_numbers(by_attributes, dtype):
    table = torch.eye(len(by_attributes.attributes))[:1].expand(2, -1)
    pictures = by_attributes.sample(2, table)
    np.testing.assert_array_equal(by_attributes.sample(2, table.to(dtype)), pictures)
    np.testing.assert_array_equal(by_attributes.sample(2, table[0].to(dtype)), pictures)


def test_a_picture_without_pixels_is_refused(model):
    with pytest.raises(InputError, match="0x0 pixels"):
        model.encode(Image.new("L", (0, 0)))


@pytest.mark.parametrize("device", [None, 1.5, "meta", "mps:99", "hpu"])
def test_a_device_that_is_not_here_is_refused(run, device):
    with pytest.raises(InputError, match="device is"):
        ali_dist.load(run, device=device)


@pytest.mark.parametrize("path", [None, 3, b"run", "\0"])
def test_a_run_that_is_no_path_is_refused(path):
    with pytest.raises(InputError, match="The run is given as"):
        ali_dist.load(path)


@pytest.mark.parametrize("features", [None, 3])
def test_features_that_are_no_name_are_refused(model, features):
    with pytest.raises(InputError, match="features is"):
        model.encode(model.sample(1), features=features)


def test_a_warning_names_the_users_line_from_whichever_method(model):
    big = np.zeros((1, 3 * SIDE, 3 * SIDE, model.tensors.sample(1).shape[1]), np.uint8)
    for method in (model.encode, model.score, model.tensors.encode, lambda x: model.interpolate(x, x)):
        for given in (big, [big[0], big[0, 1:]]):
            with warnings.catch_warnings(record=True) as raised:
                warnings.simplefilter("always")
                method(given)
            assert raised
            assert {warning.filename for warning in raised} == {__file__}
