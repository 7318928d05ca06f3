"""Built-in data: scikit-learn's digits, and the two-dimensional mixtures of Gaussians of the GAN literature."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ali_dist.data.index import INDEX_KEY, check_listing, load_index
from ali_dist.data.shards import Labelled, write_shards
from ali_dist.data.storage import LocalStore, Store, open_store
from ali_dist.errors import InputError

BuiltIn = Literal["digits", "mixture-grid", "mixture-ring"]
Track = Callable[[str, int | None], Callable[[int], None]]

MIXTURE_SAMPLES = 25_000
_UNFINISHED = "unfinished.json"  # is there while a split is being written: what lies beside it is ours
_OURS = re.compile(r"\d{5}\.(tar|npz)")


def untracked(name: str, total: int | None) -> Callable[[int], None]:
    """Begin to show progress on `total` samples of `name`, and return what counts them: here, show nothing."""
    return lambda samples: None


def prepare_digits(
    store: Store,
    *,
    encoding: Literal["raw", "png", "jpg"] = "raw",
    shard_mb: float = 32.0,
    track: Track = untracked,
) -> bool:
    """Write scikit-learn's handwritten digits: uint8 [1, 8, 8], 1437 to train and 360 to test on, in ten classes.

    Args:
        store: parent folder of the splits `train` and `test`.
        encoding: of the images; the source's 17 grey levels v become round(v * 255 / 16).
        shard_mb: megabytes at which a new shard is begun.
        track: shows progress, see `untracked`.

    Returns:
        Whether anything was written; False if all of it was there already.

    Raises:
        InputError: other data is there.

    Source: UCI "Optical Recognition of Handwritten Digits" test set, as shipped with scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    splits = train_test_split(x, labels, test_size=360, stratify=labels, random_state=0)
    settings = {"name": "digits", "encoding": encoding, "shard_mb": shard_mb}
    wrote = False
    with _alone(store):
        for split, xs, ys in (("train", splits[0], splits[2]), ("test", splits[1], splits[3])):
            samples = _counted(zip(xs, ys.tolist(), strict=True), track(split, len(xs)))
            wrote |= _write_split(
                store.child(split), samples, settings, encoding=encoding, shape=(1, 8, 8), dtype="uint8",
                classes=[str(digit) for digit in range(10)], shard_mb=shard_mb,
            )  # fmt: skip
    return wrote


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
    """Write points of a mixture of equal Gaussians: float32 [2], the component as class, means and std in `extra`.

    Args:
        store: parent folder of the splits `train` and `test`.
        layout: see `mixture_means`.
        samples: points to train on; a tenth as many are for testing.
        shard_mb: megabytes at which a new shard is begun.
        track: shows progress, see `untracked`.

    Returns:
        Whether anything was written; False if all of it was there already.

    Raises:
        InputError: other data is there, or fewer than 10 samples are asked for.
    """
    means, std = mixture_means(layout)
    if samples < 10:
        raise InputError(f"The mixture is to have {samples} samples, but must have at least 10.")
    settings = {"name": f"mixture-{layout}", "samples": samples, "shard_mb": shard_mb}
    mixture = {"means": means.tolist(), "std": std}
    wrote = False
    with _alone(store):
        for seed, (split, count) in enumerate((("train", samples), ("test", samples // 10))):
            rng = np.random.default_rng(seed)
            component = rng.integers(len(means), size=count)
            x = (means[component] + std * rng.standard_normal((count, 2))).astype(np.float32)
            points = zip(x, component.tolist(), strict=True)
            wrote |= _write_split(
                store.child(split), _counted(points, track(split, count)), settings, encoding="raw",
                shape=(2,), dtype="float32", classes=[str(k) for k in range(len(means))], extra={"mixture": mixture},
                shard_mb=shard_mb,
            )  # fmt: skip
    return wrote


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
    splits = [store.child(split) for split in ("train", "test")]
    there = [load_index(split).extra.get("source", {}) for split in splits if split.stat(INDEX_KEY) is not None]
    if any(not one.get("name", "").startswith(("digits", "mixture-")) for one in there):
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
    layout: Literal["grid", "ring"] = "grid" if source == "mixture-grid" else "ring"
    return prepare_mixture(store, layout, samples=mixture_samples, track=track)


def _counted(samples: Iterable[Labelled], count: Callable[[int], None]) -> Iterator[Labelled]:
    for sample in samples:
        yield sample
        count(1)


def _write_split(
    store: Store,
    samples: Iterable[Labelled],
    settings: dict[str, Any],
    extra: dict[str, Any] | None = None,
    **form: Any,
) -> bool:
    """Write one split unless it is there, whole and made with the same settings; returns whether it was written."""
    if store.stat(INDEX_KEY) is not None:
        index = load_index(store)
        if index.extra.get("source") != settings:
            raise InputError(
                f"{store.url} already holds other data ({json.dumps(index.extra.get('source', 'of your own'))}, not "
                f"{json.dumps(settings)}): choose another folder, or remove that one."
            )
        try:
            check_listing(store, index)
            return False
        except InputError:
            store.delete([INDEX_KEY])  # shards were lost: the same ones are written again
    elif store.stat(_UNFINISHED) is None and any(info.key.endswith(".tar") for info in store.list()):
        raise InputError(
            f"{store.url} holds tars without an index that this program did not write: choose another folder, or "
            f"index them with `python -m ali_dist.prepare webdataset {store.url}`."
        )
    store.put(_UNFINISHED, json.dumps({"source": settings}).encode())
    index = write_shards(store, samples, extra={**(extra or {}), "source": settings}, **form)
    keep = {key for shard in index.shards for key in (shard.key, shard.sidecar_key)}
    stale = [info.key for info in store.list() if _OURS.fullmatch(info.key) and info.key not in keep]
    store.delete([*stale, _UNFINISHED])  # an earlier try with other settings may have left more shards
    return True


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Keep other processes from preparing the same local folder; on S3 equal writers write equal objects."""
    if not isinstance(store, LocalStore):
        yield
        return
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        folder = os.open(store.root, os.O_RDONLY)
    except OSError as error:
        raise InputError(
            f"{store.url} cannot be used ({str(error.strerror).lower()}): check its permissions, or choose another "
            f"folder."
        ) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
