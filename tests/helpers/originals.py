"""Tiny data sets in the formats in which the real ones are published."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")


def make_noise(n: int, shape: tuple[int, ...] = (3, 32, 32), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def encode_jpeg(x: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Make an image like a photograph, uint8 [H, W, 3]: a few blurred patches of color."""
    coarse = Image.fromarray(make_noise(1, (6, 5, 3), seed)[0])
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


# ---- CIFAR-10 ------------------------------------------------------------------------------------------------------


def make_cifar_batches(per_batch: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Make images [per_batch, 3, 32, 32] and class numbers for every batch."""
    rng = np.random.default_rng(7)
    return {name: (make_noise(per_batch, seed=n), rng.integers(0, 10, per_batch)) for n, name in enumerate(BATCHES)}


def write_cifar_binary(folder: Path, per_batch: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write the folder cifar-10-batches-bin, as in the binary version."""
    batches = make_cifar_batches(per_batch)
    folder.mkdir(parents=True)
    for name, (x, y) in batches.items():
        records = np.concatenate([y[:, None].astype(np.uint8), x.reshape(per_batch, -1)], axis=1)
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("airplane\nautomobile\n")
    return batches


def write_cifar_python(folder: Path, per_batch: int = 20) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write the folder cifar-10-batches-py, pickled as Python 2 did."""
    batches = make_cifar_batches(per_batch)
    folder.mkdir(parents=True)
    for name, (x, y) in batches.items():
        content = {
            b"batch_label": name.encode(),
            b"labels": y.tolist(),
            b"data": x.reshape(per_batch, -1),
            b"filenames": [f"image_{n:06d}.png".encode() for n in range(per_batch)],
        }
        (folder / name).write_bytes(pickle_as_python2(content))
    return batches


def write_cifar100(folder: Path, *, binary: bool, train: int = 40) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write CIFAR-100's files of either version; gives images and fine labels, of which coarse ones are a fifth."""
    folder.mkdir(parents=True)
    names = {"fine": [f"fine{n}" for n in range(100)], "coarse": [f"coarse_{n}" for n in range(20)]}
    written = {}
    for seed, (part, n) in enumerate({"train": train, "test": train // 4}.items()):
        x, fine = make_noise(n, seed=seed), np.random.default_rng(seed).integers(0, 100, n)
        written[part] = (x, fine)
        rows = x.reshape(n, -1)
        if binary:
            records = np.concatenate([np.stack([fine // 5, fine], 1).astype(np.uint8), rows], axis=1)
            (folder / f"{part}.bin").write_bytes(records.tobytes())
        else:
            labels = {b"fine_labels": fine.tolist(), b"coarse_labels": (fine // 5).tolist()}
            (folder / part).write_bytes(pickle_as_python2({b"data": rows, **labels}))
    if binary:
        for kind, words in names.items():
            (folder / f"{kind}_label_names.txt").write_text("\n".join(words) + "\n\n")
    else:
        meta = {f"{kind}_label_names".encode(): [word.encode() for word in words] for kind, words in names.items()}
        (folder / "meta").write_bytes(pickle_as_python2(meta))
    return written


def pickle_as_python2(value: Any) -> bytes:
    """Pickle by protocol 2 with byte strings and numpy's old module names, which Python 3 cannot write."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: Any) -> bytes:
    if isinstance(value, bytes):
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<i", len(value))) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(_pickled(k) + _pickled(v) for k, v in value.items()) + b"u"
    assert isinstance(value, np.ndarray)
    code = value.dtype.str[-2:].encode()
    dtype = (
        b"cnumpy\ndtype\n" + _pickled(code) + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"(" + b"".join(map(_pickled, value.shape)) + b"t"
    state = b"(K\x01" + shape + dtype + b"\x89" + _pickled(value.tobytes()) + b"t"
    return b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R" + state + b"b"


def pack_archive(archive: Path, folder: Path) -> Path:
    """Make the .tar.gz of a folder."""
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    return archive


# ---- SVHN ----------------------------------------------------------------------------------------------------------


def write_svhn(folder: Path, counts: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write NAME_32x32.mat for each name: X (32, 32, 3, N) and y (N, 1), where 10 stands for the digit 0."""
    from scipy.io import savemat  # type: ignore[import-untyped]

    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for seed, (name, n) in enumerate(counts.items()):
        x, y = make_noise(n, seed=seed), np.arange(1, n + 1) % 10
        labels = np.where(y == 0, 10, y).astype(np.uint8)[:, None]
        savemat(folder / f"{name}_32x32.mat", {"X": x.transpose(2, 3, 1, 0), "y": labels}, do_compression=True)
        written[name] = (x, y)
    return written


# ---- CelebA --------------------------------------------------------------------------------------------------------

FACES = [f"{n:06d}.jpg" for n in range(1, 13)]
FACE_ATTRIBUTES = [f"Attribute_{n}" for n in range(40)]


def write_celeba(folder: Path, *, zipped: bool = False) -> np.ndarray:
    """Write twelve aligned faces (8 train, 2 valid, 2 test) with their two lists; returns the attributes, 0 or 1."""
    values = np.random.default_rng(3).integers(0, 2, (len(FACES), 40))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{name}  " + " ".join(f"{2 * v - 1:2d}" for v in row) for name, row in zip(FACES, values, strict=True)]
    (folder / "list_attr_celeba.txt").write_text("\n".join([str(len(FACES)), " ".join(FACE_ATTRIBUTES), *rows]) + "\n")
    splits = [0] * 8 + [1] * 2 + [2] * 2
    partition = "".join(f"{name} {split}\n" for name, split in zip(FACES, splits, strict=True))
    (folder / "list_eval_partition.txt").write_text(partition)
    images = {name: encode_jpeg(make_photo(218, 178, seed)) for seed, name in enumerate(FACES)}
    if zipped:
        with zipfile.ZipFile(folder / "img_align_celeba.zip", "w") as file:
            for name, data in images.items():
                file.writestr(f"img_align_celeba/{name}", data)
    else:
        write_files(folder / "img_align_celeba", images)
    return values


# ---- Folders of images ---------------------------------------------------------------------------------------------


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_imagenet(folder: Path, wnids: Sequence[str] = ("n02", "n01", "n10"), per_class: int = 4) -> None:
    """Write train/<wnid>/ with images of several sizes, and a flat val/ with two of each class."""
    for c, wnid in enumerate(wnids):
        for n in range(per_class):
            image = make_photo(80 + 10 * n, 100 - 7 * c, seed=10 * c + n)
            write_files(folder / "train" / wnid, {f"{wnid}_{n}.JPEG": encode_jpeg(image)})
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": encode_jpeg(make_photo(70, 90, seed=100 + n)) for n in range(2 * len(wnids))}
    write_files(folder / "val", val)


# ---- MNIST and its kind --------------------------------------------------------------------------------------------


def encode_idx(x: np.ndarray) -> bytes:
    """Encode bytes [n, ...] in the IDX format: a magic number, the sizes, the numbers."""
    return struct.pack(f">I{x.ndim}I", 0x0800 + x.ndim, *x.shape) + x.astype(np.uint8).tobytes()


def write_mnist(
    folder: Path, *, prefix: str = "", train: int = 60, packed: bool = True, first_label: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write the four files; EMNIST's have a prefix and `test` in place of `t10k`. Labels go round through ten."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for seed, (part, n) in enumerate({"train": train, "test" if prefix else "t10k": train // 3}.items()):
        x, y = make_noise(n, (28, 28), seed), np.arange(n) % 10 + first_label
        for name, data in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            content = encode_idx(data)
            path = folder / f"{prefix}{name}{'.gz' * packed}"
            path.write_bytes(gzip.compress(content) if packed else content)
        written["train" if part == "train" else "test"] = (x, y)
    return written
