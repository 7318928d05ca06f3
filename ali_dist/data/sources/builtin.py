"""Built-in data: scikit-learn's digits, the mixtures of Gaussians of the GAN literature, and drawn shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.index import INDEX_KEY, load_index
from ali_dist.data.sources.shapes import shapes_splits
from ali_dist.data.sources.split import Split, Track, array_part, untracked
from ali_dist.data.sources.writing import Writing, write_splits
from ali_dist.data.storage import LocalStore, Store, open_store
from ali_dist.errors import InputError

BuiltIn = Literal["digits", "mixture-grid", "mixture-ring", "shapes", "shapes-attributes"]
MIXTURE_SAMPLES = 25_000
SPLITS = ("train", "test")  # of every built-in source


def prepare_digits(
    store: Store,
    *,
    encoding: Literal["raw", "png", "jpg"] = "raw",
    shard_mb: float = 32.0,
    track: Track = untracked,
) -> bool:
    """Write scikit-learn's handwritten digits, see `digits_splits`.

    Args:
        store: parent folder of the splits `train` and `test`.
        encoding: of the images.
        shard_mb: megabytes of a shard.
        track: shows progress, see `untracked`.

    Returns:
        Whether anything was written; False if all of it was there already.

    Raises:
        InputError: other data is there.
    """
    return _write(store, digits_splits(), Writing(encoding=encoding, shard_mb=shard_mb), track)


def digits_splits() -> Iterator[Split]:
    """uint8 [1, 8, 8], 1437 to train and 360 to test on, in ten classes; grey levels 0..16 become round(v * 255 / 16).

    Source: UCI "Optical Recognition of Handwritten Digits" test set, as shipped with scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    parts = train_test_split(x, labels, test_size=360, stratify=labels, random_state=0)
    for name, xs, ys in (("train", parts[0], parts[2]), ("test", parts[1], parts[3])):
        yield Split(
            name=name, size=len(xs), shape=(1, 8, 8), part=array_part(xs, ys, f"Digit of {name}"),
            settings={"name": "digits"}, classes=tuple(str(digit) for digit in range(10)), class_numbers=ys,
            mixed=True,
        )  # fmt: skip


def mixture_means(layout: Literal["grid", "ring"]) -> tuple[NDArray[np.float64], float]:
    """Means [K, 2] and standard deviation of a mixture's components.

    grid: 25 on {-4, -2, 0, 2, 4}^2, 0.05; ring: 8 on the unit circle, 0.01.

    Raises:
        InputError: another layout.
    """
    if layout == "grid":
        side = np.arange(-4.0, 5.0, 2.0)
        return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2), 0.05
    if layout == "ring":
        angle = 2 * np.pi * np.arange(8) / 8
        return np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.01
    raise InputError(f"The mixture's layout is {layout!r}, but must be 'grid' or 'ring'.")


def prepare_mixture(
    store: Store,
    layout: Literal["grid", "ring"] = "grid",
    *,
    samples: int = MIXTURE_SAMPLES,
    shard_mb: float = 32.0,
    track: Track = untracked,
) -> bool:
    """Write points of a mixture of equal Gaussians, see `mixture_splits`.

    Args:
        store: parent folder of the splits `train` and `test`.
        layout: see `mixture_means`.
        samples: points to train on; a tenth as many are for testing.
        shard_mb: megabytes of a shard.
        track: shows progress, see `untracked`.

    Returns:
        Whether anything was written; False if all of it was there already.

    Raises:
        InputError: other data is there, or fewer than 10 samples are asked for.
    """
    return _write(store, mixture_splits(layout, samples), Writing(shard_mb=shard_mb), track)


def mixture_splits(layout: Literal["grid", "ring"] = "grid", samples: int = 100_000) -> Iterator[Split]:
    """float32 [2], the component as class, means and std in `extra`; a tenth of `samples` more are for testing.

    Raises:
        InputError: fewer than 10 samples, or another layout.
    """
    means, std = mixture_means(layout)
    if samples < 10:
        raise InputError(f"The mixture is to have {samples} samples, but must have at least 10.")
    for seed, (name, count) in enumerate((("train", samples), ("test", samples // 10))):
        rng = np.random.default_rng(seed)
        component = rng.integers(len(means), size=count)
        x = (means[component] + std * rng.standard_normal((count, 2))).astype(np.float32)
        yield Split(
            name=name, size=count, shape=(2,), dtype="float32", part=array_part(x, component, f"Point of {name}"),
            settings={"name": f"mixture-{layout}", "samples": samples},
            classes=tuple(str(k) for k in range(len(means))),
            extra={"mixture": {"means": means.tolist(), "std": std}}, mixed=True,
        )  # fmt: skip


def ensure_prepared(
    source: BuiltIn, url: str, *, mixture_samples: int = MIXTURE_SAMPLES, track: Track = untracked
) -> bool:
    """Write built-in data into a local folder unless data is there; safe when several processes do it at once.

    Data of one's own that is there is left alone and will be used. Nothing is written to S3.

    Args:
        source: which data.
        url: parent folder of its splits.
        mixture_samples: points to train on, if a mixture has to be written.
        track: shows progress, see `untracked`.

    Returns:
        Whether anything was written.

    Raises:
        InputError: the folder holds other built-in data.
    """
    store = open_store(url)
    if not isinstance(store, LocalStore) or store.stat(INDEX_KEY) is not None:
        return False
    splits = [store.child(split) for split in SPLITS]
    there = [load_index(split).extra.get("source", {}) for split in splits if split.stat(INDEX_KEY) is not None]
    if any(one.get("name") not in get_args(BuiltIn) for one in there):
        return False
    for one in there:
        if one["name"] != source:
            raise InputError(
                f"data.source is {source!r}, but {store.url} holds {one['name']!r}: choose another data.url, or "
                f"remove that folder."
            )
    if len(there) == len(splits):
        return False
    if source == "digits":
        return prepare_digits(store, track=track)
    if source == "mixture-grid" or source == "mixture-ring":
        layout: Literal["grid", "ring"] = "grid" if source == "mixture-grid" else "ring"
        return prepare_mixture(store, layout, samples=mixture_samples, track=track)
    return _write(store, shapes_splits("classes" if source == "shapes" else "attributes"), Writing(), track)


def _write(store: Store, splits: Iterator[Split], how: Writing, track: Track) -> bool:
    return any(wrote for _, wrote in write_splits(store, splits, how, track).values())
