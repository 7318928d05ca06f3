"""Trained runs that the commands are tried on, made once for all tests of this folder."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.trained import labelled_images, run_folder, trained


@pytest.fixture(scope="package", autouse=True)
def _quick_classifiers():
    """Classifiers of random images need no training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ali_dist.evaluation.classifiers.STEPS", 5)
        yield


@pytest.fixture(scope="package")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="package")
def data(folder) -> Path:
    return labelled_images(folder / "classes", "classes")


@pytest.fixture(scope="package")
def plain(folder, data) -> str:
    config = trained(folder, data, "plain", report__evaluation="auto", report__evaluation_samples=50)
    return str(run_folder(config))


@pytest.fixture(scope="package")
def by_class(folder, data) -> str:
    return str(run_folder(trained(folder, data, "by-class", model__condition="classes")))


@pytest.fixture(scope="package")
def by_attributes(folder) -> str:
    images = labelled_images(folder / "attributes", "attributes")
    return str(run_folder(trained(folder, images, "by-attributes", model__condition="attributes")))


def refusal(capsys, command, *words) -> str:
    """Run a wrong command; gives the one sentence that it ends with."""
    capsys.readouterr()
    assert command.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    return err


def succeed(command, *words) -> None:
    """Run a command that must exit with 0."""
    assert command.main([str(word) for word in words]) == 0


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def read_pixels(path: Path) -> np.ndarray:
    """RGB [h, w, 3], of gray files, too."""
    return np.asarray(Image.open(path).convert("RGB"))
