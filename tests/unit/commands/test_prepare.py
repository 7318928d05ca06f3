"""The prepare command and built-in data: the content is right, repeats and races are safe, and refusals are clear."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.base import StartTracking, track_nothing
from ali_dist.data.sources.digits import digits_splits
from ali_dist.data.sources.mixture import mixture_means, mixture_splits
from ali_dist.data.sources.registry import SOURCES
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.arrays import damage_sample, make_labelled_arrays, write_arrays
from tests.helpers.commands import content, refused, run, state
from tests.helpers.originals import write_files
from tests.helpers.tars import encode_image, write_foreign_tar

pytestmark = pytest.mark.timeout(120)


def write_mixture(
    folder: Path, samples: int, *, shard_mb: float = 32.0, start_tracking: StartTracking = track_nothing
) -> bool:
    """Write a grid of Gaussians as the command does; returns whether anything was written."""
    splits = mixture_splits("grid", samples)
    written = write_splits(LocalStore(folder), splits, WriteOptions(shard_mb=shard_mb), start_tracking)
    return any(is_new for _, is_new in written.values())


# ---- Built-in data -------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_two_disjoint_stratified_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sklearn.datasets import load_digits

    code, out, _ = run(capsys, "digits", tmp_path, "--verify")
    assert code == 0
    assert "train: 1437 samples" in out
    assert "test: 360 samples in 1 shard checked, 0 problems" in out
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * 255 / 16).astype(np.uint8)
    source = sorted((row.tobytes(), int(label)) for row, label in zip(pixels, labels, strict=True))
    loaded_pairs = []
    for split, count in (("train", 1437), ("test", 360)):
        store = LocalStore(tmp_path / split)
        index = load_index(store)
        assert (index.shape, index.dtype, index.classes) == ((1, 8, 8), "uint8", tuple("0123456789"))
        x, y = load_arrays(store, index)
        assert y is not None
        assert len(x) == count
        shares = np.bincount(y.numpy(), minlength=10) / count
        assert np.allclose(shares, np.bincount(labels) / len(labels), atol=0.003)
        loaded_pairs += [(row.numpy().tobytes(), int(label)) for row, label in zip(x, y, strict=True)]
    assert sorted(loaded_pairs) == source


@pytest.mark.parametrize(("layout", "modes", "std"), [("grid", 25, 0.05), ("ring", 8, 0.01)])
def test_mixture_points_lie_about_the_component_they_are_labelled_with(
    tmp_path: Path, layout: Any, modes: int, std: float
) -> None:
    write_splits(LocalStore(tmp_path), mixture_splits(layout, 4000), WriteOptions())
    train, test = (LocalStore(tmp_path / split) for split in ("train", "test"))
    index = load_index(train)
    x, y = load_arrays(train, index)
    assert y is not None
    means = np.array(index.extra["mixture"]["means"])
    assert means.shape == (modes, 2)
    assert np.allclose(means, mixture_means(layout)[0])
    assert index.extra["mixture"]["std"] == std
    residual = (x.numpy() - means[y.numpy()]) / std
    assert abs(residual.std() - 1) < 0.05
    assert np.abs(residual).max() < 6
    assert np.bincount(y.numpy(), minlength=modes).min() > 4000 / modes / 2
    held_out = load_arrays(test, load_index(test))[0]
    assert len(held_out) == 400
    assert not {point.tobytes() for point in x.numpy()} & {point.tobytes() for point in held_out.numpy()}


# ---- Repeat, interrupt, race ---------------------------------------------------------------------------------------


def test_repeating_a_command_changes_nothing_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "mixture", tmp_path, "--samples", 300)[0] == 0
    before = state(tmp_path)
    code, out, _ = run(capsys, "mixture", tmp_path, "--samples", 300)
    assert code == 0
    assert out.count("already there") == 2
    assert state(tmp_path) == before


@pytest.mark.parametrize("stop_after", [1, 150, 310])
def test_an_interrupted_preparation_is_done_again_and_equals_an_unbroken_one(tmp_path: Path, stop_after: int) -> None:
    """It is interrupted in the first shard, in a later one and in the second split."""

    seen = 0

    def interrupting(name: str, total: int | None) -> Any:
        def count(samples: int) -> None:
            nonlocal seen
            seen += samples
            if seen >= stop_after:
                raise KeyboardInterrupt

        return count

    root = tmp_path / "torn"
    with pytest.raises(KeyboardInterrupt):
        write_mixture(root, 300, shard_mb=0.1, start_tracking=interrupting)
    assert not (root / "test" / "index.json").exists()
    assert write_mixture(root, 300, shard_mb=0.1)
    write_mixture(tmp_path / "whole", 300, shard_mb=0.1)
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


def test_shards_of_an_interrupted_try_with_other_settings_do_not_stay(tmp_path: Path) -> None:
    """Stock webdataset reads every tar of a folder, so a stale one would double samples."""
    root = tmp_path / "torn"
    write_mixture(root, 300, shard_mb=0.05)
    for split in ("train", "test"):
        LocalStore(root / split).put("unfinished.json", b"{}")
        LocalStore(root / split).delete(["index.json"])
    write_mixture(root, 300)
    write_mixture(tmp_path / "whole", 300)
    assert content(tmp_path / "torn") == content(tmp_path / "whole")


def test_lost_shards_are_written_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "mixture", tmp_path, "--samples", 300)
    before = content(tmp_path)
    (tmp_path / "train" / "00000.tar").unlink()
    code, out, _ = run(capsys, "mixture", tmp_path, "--samples", 300)
    assert code == 0
    assert "written" in out
    assert content(tmp_path) == before


def _prepare_in_child(folder: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    wrote = write_mixture(Path(folder), 400, shard_mb=0.1)
    listing = LocalStore(Path(folder)).list()
    results.put((wrote, [(info.key, info.etag) for info in listing]))


def test_two_processes_that_race_write_once_and_neither_sees_files_change(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    children = [context.Process(target=_prepare_in_child, args=(str(tmp_path), barrier, results)) for _ in range(2)]
    for child in children:
        child.start()
    outcomes = [results.get(timeout=100) for _ in children]
    for child in children:
        child.join()
    assert sorted(wrote for wrote, _ in outcomes) == [False, True]
    assert outcomes[0][1] == outcomes[1][1]


# ---- First use by training -----------------------------------------------------------------------------------------


def test_first_use_writes_digits_once_and_leaves_ones_own_data_alone(tmp_path: Path) -> None:
    assert ensure_prepared("digits", str(tmp_path / "a"))
    before = state(tmp_path / "a")
    assert not ensure_prepared("digits", str(tmp_path / "a"))
    assert state(tmp_path / "a") == before
    write_arrays(tmp_path / "own" / "train", *make_labelled_arrays(20))
    before = state(tmp_path / "own")
    assert not ensure_prepared("digits", str(tmp_path / "own"))
    assert not ensure_prepared("digits", str(tmp_path / "own" / "train"))
    assert state(tmp_path / "own") == before
    assert not ensure_prepared("digits", "s3://some-bucket/digits"), "nothing is written to S3 unasked"
    with pytest.raises(InputError, match="no built-in data 'numbers': set data.source to one of digits, "):
        ensure_prepared("numbers", str(tmp_path / "a"))


def test_first_use_takes_what_the_command_prepared_with_other_settings(tmp_path: Path) -> None:
    assert ensure_prepared("mixture-ring", str(tmp_path), samples=50)
    assert load_index(LocalStore(tmp_path / "train")).num_samples == 50
    assert not ensure_prepared("mixture-ring", str(tmp_path))
    with pytest.raises(InputError, match="data.source is 'mixture-grid', but .* holds 'mixture-ring'"):
        ensure_prepared("mixture-grid", str(tmp_path))


def test_other_data_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "mixture", tmp_path, "--samples", 100)
    before = state(tmp_path)
    assert "already holds other data" in refused(capsys, "digits", tmp_path)
    assert "already holds other data" in refused(capsys, "mixture", tmp_path, "--samples", 101)
    assert state(tmp_path) == before
    (tmp_path / "tars" / "train").mkdir(parents=True)
    (tmp_path / "tars" / "train" / "00000.tar").write_bytes(b"precious")
    assert "did not write" in refused(capsys, "digits", tmp_path / "tars")
    assert content(tmp_path / "tars") == {"train/00000.tar": b"precious"}


def test_only_some_classes_are_written_under_their_own_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An anomaly detector is trained on these: the samples of the whole data set, in the same order, and no others."""
    assert run(capsys, "digits", tmp_path / "some", "--only", "7, 3")[0] == 0
    write_splits(LocalStore(tmp_path / "all"), digits_splits(), WriteOptions())
    for split in ("train", "test"):
        x, y = load_arrays(store := LocalStore(tmp_path / "all" / split), load_index(store))
        store = LocalStore(tmp_path / "some" / split)
        index = load_index(store)
        some, labels = load_arrays(store, index)
        assert y is not None
        assert labels is not None
        is_kept = (y == 3) | (y == 7)
        assert torch.equal(some, x[is_kept])
        assert torch.equal(labels, y[is_kept])
        assert len(index.classes) == 10
    assert "already there" in run(capsys, "digits", tmp_path / "some", "--only", "3,7")[1]
    assert "already holds other data" in refused(capsys, "digits", tmp_path / "some", "--only", "3")


def test_settings_that_differ_are_named_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "mixture", tmp_path, "--samples", 100)
    message = refused(capsys, "mixture", tmp_path, "--samples", 100, "--shard-mb", 8)
    assert "/train already holds other data (shard_mb 32.0, not 8.0): choose another folder, or remove that" in message
    assert "already holds other data (mixture-grid, not digits)" in refused(capsys, "digits", tmp_path)


def test_pictures_and_shards_may_not_lie_in_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for out, words in ((own, "is the"), (own / "out", "lies in the"), (tmp_path, "holds the")):
        message = refused(capsys, "folder", out, "--from", own)
        assert f"{out} {words} folder of images {own}" in message
        assert f"choose a folder beside it, such as {tmp_path / 'own-prepared'}" in message
    assert content(tmp_path) == {}


# ---- Wrong input ---------------------------------------------------------------------------------------------------


def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for arguments, words in [
        (("digit", tmp_path), "no source 'digit'; did you mean digits"),
        (("cats", tmp_path), f"sources: {', '.join(SOURCES)}, webdataset"),
        ((), "SOURCE and OUT are missing"),
        (("digits", tmp_path, "--samples", 5), "--samples does not apply to digits"),
        (("mixture", tmp_path, "--samples", 5), "must have at least 10"),
        (("mixture", tmp_path, "--encoding", "png"), "--encoding does not apply to mixture"),
        (("webdataset", tmp_path, "--jobs", 1), "--jobs does not apply to webdataset"),
        (("digits", tmp_path, "--from", tmp_path), "--from does not apply to digits"),
        (("digits", tmp_path, "--jobs", 0), "--jobs is 0"),
        (("folder", tmp_path / "out", "--from", tmp_path / "own", "--size", 0), "--size is 0"),
        (("digits", tmp_path, "--skipbad"), "There is no option --skipbad; did you mean --skip-bad"),
        (("digits", tmp_path, "--only", "3,11"), "--only names the class '11', which does not exist"),
        (("mixture", tmp_path, "--only", "3"), "--only chooses classes, but this source knows none"),
        (("webdataset", tmp_path, "--only", "3"), "--only does not apply to webdataset"),
        (("celeba", tmp_path), "celeba needs --from PATH"),
        (("mixture", tmp_path, "--layout", "cube"), "--layout"),
        (("digits", tmp_path, "--shard-mb", 0), "--shard-mb is 0"),
        (("digits", tmp_path, "--shard-mb", "nan"), "--shard-mb is nan"),
        (("digits", "ftp://somewhere"), "ftp://somewhere"),
        (("digits", tmp_path / "file"), "cannot be used"),
        (("webdataset", tmp_path / "nothing"), "no .tar files"),
    ]:
        assert words in refused(capsys, *arguments)
    assert content(tmp_path) == {"file": b""}


def test_verify_lists_each_bad_sample_up_to_ten_and_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mixture(tmp_path, 300, shard_mb=0.1)
    train = LocalStore(tmp_path / "train")
    locations = [damage_sample(train, load_index(train), sample) for sample in range(100, 112)]
    code, out, err = run(capsys, "mixture", tmp_path, "--samples", 300, "--shard-mb", 0.1, "--verify")
    assert code == 2
    assert "train: 300 samples in 7 shards checked, 12 problems" in out
    *lines, last = err.splitlines()
    assert last == "... and 2 more."
    for line, (key, number) in zip(lines, locations[:10], strict=True):
        assert f"sample {number} of {key} (" in line


def test_preparing_digits_as_png_gives_the_same_pixels(tmp_path: Path) -> None:
    write_splits(LocalStore(tmp_path / "raw"), digits_splits(), WriteOptions(encoding="raw"))
    write_splits(LocalStore(tmp_path / "png"), digits_splits(), WriteOptions(encoding="png"))
    stores = [LocalStore(tmp_path / encoding / "test") for encoding in ("raw", "png")]
    raw, compressed = (load_arrays(store, load_index(store))[0].numpy() for store in stores)
    assert np.array_equal(raw, compressed)


def test_own_images_are_followed_by_the_command_that_trains_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(4):
        write_files(tmp_path / "my pictures" / "cat", {f"{n}.png": encode_image(n, size=(20, 20))})
    place = str(tmp_path / "out put")
    code, out, _ = run(capsys, "folder", place, "--from", tmp_path / "my pictures", "--size", "16", "--holdout", "0")
    assert code == 0
    assert out.endswith(f"Next:\n  python -m ali_dist.train --preset images --data.url '{place}'\n")
    code, out, _ = run(capsys, "digits", tmp_path / "digits", "--only", "3")
    assert (code, "Next:" in out) == (0, False)


@pytest.mark.parametrize(("size", "is_taken"), [((16, 16), True), ((32, 16), False), ((20, 20), False)])
def test_training_is_suggested_where_the_index_is_and_for_sides_that_networks_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], size: tuple[int, int], is_taken: bool
) -> None:
    members = [(f"{n}.png", encode_image(n, size=size)) for n in range(4)]
    write_foreign_tar(tmp_path / "tars" / "0.tar", members)
    code, out, _ = run(capsys, "webdataset", tmp_path / "tars", "--out", tmp_path / "index")
    assert code == 0
    assert (f"--preset images --data.url {tmp_path / 'index'}\n" in out) == is_taken
    assert ("Next:" in out) == is_taken
