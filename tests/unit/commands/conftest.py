"""Trained runs that the commands are tried on, made once for all of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.trained import labelled_images, run_folder, trained


@pytest.fixture(scope="package", autouse=True)
def _quick_judges():
    """Judges of random images need no training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ali_dist.evaluation.classifiers.STEPS", 5)
        yield


@pytest.fixture(scope="package")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="package")
def data(place) -> Path:
    return labelled_images(place / "classes", "classes")


@pytest.fixture(scope="package")
def plain(place, data) -> str:
    config = trained(place, data, "plain", report__evaluation="auto", report__evaluation_samples=50)
    return str(run_folder(config))


@pytest.fixture(scope="package")
def by_class(place, data) -> str:
    return str(run_folder(trained(place, data, "by-class", model__condition="classes")))


@pytest.fixture(scope="package")
def by_attributes(place) -> str:
    images = labelled_images(place / "attributes", "attributes")
    return str(run_folder(trained(place, images, "by-attributes", model__condition="attributes")))


def refused(capsys, command, *words) -> str:
    """The one sentence with which a wrong command ends."""
    capsys.readouterr()
    assert command.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


def done(command, *words) -> None:
    assert command.main([str(word) for word in words]) == 0


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
