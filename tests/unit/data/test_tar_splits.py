"""Splits of somebody else's tars, by folder and by name, with their indexes beside the tars or elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ali_dist.config.loading import from_mapping
from ali_dist.data.preparation.tar_splits import split_of_name
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.location import open_tars
from ali_dist.data.shards.reader import load_arrays, load_labels
from ali_dist.errors import InputError
from ali_dist.runs.datasets import open_run_data
from ali_dist.storage.base import Access
from ali_dist.storage.cached import with_cache
from ali_dist.storage.local import LocalStore
from ali_dist.storage.s3 import S3Store
from tests.helpers.commands import content, refused, run, state
from tests.helpers.fault_server import ENV, FaultServer
from tests.helpers.tars import encode_image, make_members, values_of, write_foreign_tar

# ---- Splits by name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000", "train"),
        ("training_0001", "train"),
        ("cc3m-val-0012", "valid"),
        ("VALIDATION.00", "valid"),
        ("imagenet_valid000", "valid"),
        ("dev-1", "valid"),
        ("test", "test"),
        ("shard-testing-3", "test"),
        ("trainval-000", None),
        ("train-test-0", None),
        ("00000", None),
        ("latest-0", None),
    ],
)
def test_names_of_tars_speak_of_splits(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


def test_tars_of_several_splits_side_by_side_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tars = tmp_path / "tars"
    write_foreign_tar(tars / "train-000.tar", make_members(["5", "5"]))
    write_foreign_tar(tars / "train-001.tar", make_members(["7"]))
    assert "3 samples in 2 shards" in run(capsys, "webdataset", tars)[1]
    assert (tars / "index.json").exists()  # one split is one split, whatever its tars are called
    write_foreign_tar(tars / "val-000.tar", make_members(["5"]))
    code, out, _ = run(capsys, "webdataset", tars, "--verify")
    assert code == 0
    assert "train: 3 samples in 2 shards, written" in out
    assert "valid: 1 sample in 1 shard, written" in out
    assert not (tars / "index.json").exists()  # it would be found before those of the splits
    assert "already there" in run(capsys, "webdataset", tars)[1]
    data = open_run_data(from_mapping({"data.url": str(tars)}))
    assert data.train.index.num_samples == 3
    assert data.valid is not None
    assert data.holdout is not None
    assert data.holdout.name == "valid"  # there is no test
    assert data.valid.index.num_samples == 1
    assert data.valid.index.classes == data.train.index.classes
    moved = tmp_path / "moved"
    shutil.move(tars, moved)
    store = LocalStore(moved / "train")
    assert values_of(load_arrays(store, load_index(store))[0]) == [0, 1, 0]


def test_a_tar_of_no_split_among_tars_of_splits_is_refused_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train-0", "test-0", "extra-0", "extra-1"):
        write_foreign_tar(tmp_path / f"{name}.tar", make_members(["1"]))
    message = refused(capsys, "webdataset", tmp_path)
    assert "'extra-0.tar' and 1 other of none" in message
    code, out, err = run(capsys, "webdataset", tmp_path, "--skip-bad")
    assert code == 0
    assert "2 tars belong to no split and were left out" in out
    assert "extra-0.tar" in err
    (tmp_path / "extra-1.tar").unlink()
    assert "1 tar belongs to no split and was left out" in run(capsys, "webdataset", tmp_path, "--skip-bad")[1]


def test_hidden_files_and_compressed_tars_beside_tars_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "00.tar", make_members(["1"]))
    write_foreign_tar(tmp_path / "01.tar.gz", make_members(["2"]), "w:gz")
    for name in ("._00.tar", "__MACOSX/00.tar", "._01.tar.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7" * 100)
    for _ in range(2):  # it is said again where all is there
        code, out, err = run(capsys, "webdataset", tmp_path)
        assert code == 0
        assert "1 compressed tar cannot be read in place and was left out (webdataset-import reads such)" in out
        assert "3 hidden files were left out" in out
        assert err.split() == ["'01.tar.gz'", "'._00.tar'", "'._01.tar.gz'", "'__MACOSX/00.tar'"]
        assert "1 sample in 1 shard" in out
    out = run(capsys, "webdataset-import", tmp_path, tmp_path / "out")[1]
    assert "2 samples" in out
    assert "2 hidden file (._00.tar, ._01.tar.gz)" in out


SPLIT_COMMANDS = ["webdataset {0} --out {0}/out", "webdataset-import {0}/{{train,val}}/0.tar {0}/out"]


@pytest.mark.parametrize("command", SPLIT_COMMANDS)
def test_splits_of_different_shapes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for split, side in (("train", 16), ("val", 32)):
        write_foreign_tar(tmp_path / split / "0.tar", [("a.png", encode_image(1, size=(side, side)))])
    message = refused(capsys, *command.format(tmp_path).split())
    assert "The images of train are 16x16 pixels in 3 channels and those of valid are 32x32 pixels" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", SPLIT_COMMANDS)
def test_it_is_said_where_one_split_has_labels_and_another_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    write_foreign_tar(tmp_path / "train" / "0.tar", make_members(["1", "0"]))
    write_foreign_tar(tmp_path / "val" / "0.tar", make_members([None]))
    code, out, _ = run(capsys, *command.format(tmp_path).split())
    assert code == 0
    assert "valid has no labels, though train has (cls)." in out
    write_foreign_tar(tmp_path / "val" / "0.tar", make_members([{"label": 1}]))
    shutil.rmtree(tmp_path / "out")
    out = run(capsys, *command.format(tmp_path).split())[1]
    assert "The labels of valid are json:label, though those of train are cls." in out


def test_folders_are_splits_under_their_usual_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("Training", "val", "more"):
        write_foreign_tar(tmp_path / folder / "0.tar", make_members(["1"]))
    out = run(capsys, "webdataset", tmp_path, "--verify")[1]
    assert [line.partition(":")[0] for line in out.splitlines()[:3]] == ["train", "more", "valid"]
    index = load_index(LocalStore(tmp_path / "valid"))
    assert index.extra["tars"] == "../val"
    write_foreign_tar(tmp_path / "valid" / "0.tar", make_members(["1"]))
    assert "Two folders" in refused(capsys, "webdataset", tmp_path)


# ---- Indexes elsewhere ---------------------------------------------------------------------------------------------


def test_indexes_may_lie_elsewhere_and_the_tars_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars, out = tmp_path / "tars", tmp_path / "out"
    write_foreign_tar(tars / "train" / "0.tar", make_members(["3", "1"]))
    write_foreign_tar(tars / "test" / "0.tar", make_members(["0"]))
    before = state(tars)
    code, said, _ = run(capsys, "webdataset", tars, "--out", out, "--verify")
    assert code == 0
    assert f"train: 2 samples in 1 shard, written in {out / 'train'}" in said
    assert state(tars) == before
    assert sorted(content(out)) == ["test/0.npz", "test/index.json", "train/0.npz", "train/index.json"]
    store = LocalStore(out / "train")
    index = load_index(store)
    assert index.extra["tars"] == "../../tars/train"
    x, y = load_arrays(store, index)
    assert y is not None
    assert (values_of(x), y.tolist()) == ([0, 1], [3, 1])
    assert "already there" in run(capsys, "webdataset", tars, "--out", out)[1]
    assert state(tars) == before
    write_foreign_tar(tars / "train" / "0.tar", make_members(["3"] * 12))
    with pytest.raises(InputError, match="does not match its shards"):
        load_arrays(store, index)
    assert "12 samples" in run(capsys, "webdataset", tars, "--out", out)[1]


def test_an_index_elsewhere_of_tars_in_one_folder_is_a_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "tars" / "0.tar", make_members(["0", "1"]))
    assert run(capsys, "webdataset", tmp_path / "tars", "--out", tmp_path / "out")[0] == 0
    store = LocalStore(tmp_path / "out")
    y = load_labels(store, load_index(store))
    assert y is not None
    assert y.tolist() == [0, 1]


def test_tars_on_a_read_only_place_are_refused_before_they_are_read_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.tar").write_bytes(b"not read")
    monkeypatch.setattr("os.access", lambda path, mode: False)  # to root, nothing else is
    assert "with --out" in refused(capsys, "webdataset", tmp_path)
    message = refused(capsys, "webdataset", tmp_path, "--out", tmp_path / "a" / "b")
    assert f"{tmp_path}/a/b cannot be written to, because {tmp_path} cannot: choose another --out" in message
    message = refused(capsys, "webdataset", tmp_path, "--out", tmp_path / "0.tar" / "b")
    assert f"because {tmp_path}/0.tar is a file: choose another --out" in message


def test_a_place_with_other_data_is_refused_for_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_foreign_tar(tmp_path / "tars" / "0.tar", make_members(["0"]))
    assert run(capsys, "digits", tmp_path / "digits")[0] == 0
    message = refused(capsys, "webdataset", tmp_path / "tars", "--out", tmp_path / "digits" / "train")
    assert "already holds other data" in message
    assert run(capsys, "webdataset", tmp_path / "digits")[0] == 0  # shards of our own are indexed already
    assert load_index(LocalStore(tmp_path / "digits" / "train")).extra["source"]["name"] == "digits"


@pytest.mark.parametrize("url", ["pipe:cat x", "pipe://x", "http://host/tars", "file:///x"])
def test_tars_are_nowhere_but_in_a_store(tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    """An index may come from somebody else: what it names is read as data, and never run."""
    write_foreign_tar(tmp_path / "0.tar", make_members(["0"]))
    assert run(capsys, "webdataset", tmp_path)[0] == 0
    record = json.loads((tmp_path / "index.json").read_text())
    record["extra"]["tars"] = url
    (tmp_path / "index.json").write_text(json.dumps(record))
    store = LocalStore(tmp_path)
    with pytest.raises(InputError):
        load_arrays(store, load_index(store))


def test_a_relative_place_is_relative_to_a_folder_and_not_to_a_bucket() -> None:
    access = Access(endpoint_url="http://127.0.0.1:9", timeout_seconds=3)
    bucket = S3Store("bucket", "a", access)
    with pytest.raises(InputError, match="relative to a folder"):
        open_tars(bucket, {"tars": "../tars"})
    other = open_tars(bucket, {"tars": "s3://other/tars"})
    assert other == S3Store("other", "tars", access)
    cached = open_tars(with_cache(bucket, "/cache", 1), {"tars": "s3://other/tars"})
    assert cached == with_cache(other, "/cache", 1)
    assert open_tars(LocalStore(Path("/a/b")), {"tars": "../../c"}) == LocalStore(Path("/c"))
    assert (
        open_tars(LocalStore(Path("/a")), {"tars": "s3://b", "tars_endpoint_url": "http://127.0.0.1:9"}).url == "s3://b"
    )


def test_tars_in_a_bucket_can_be_indexed_in_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    write_foreign_tar(tmp_path / "0.tar", make_members(["3", "1"]))
    with FaultServer({"bucket/tars/train/0.tar": (tmp_path / "0.tar").read_bytes()}) as server:
        endpoint = ("--endpoint-url", server.endpoint_url)
        code, _, err = run(capsys, "webdataset", "s3://bucket/tars", "--out", tmp_path / "out", *endpoint, "--verify")
        assert (code, err) == (0, "")
        assert all(request.method in ("GET", "HEAD") for request in server.requests)
        store = LocalStore(tmp_path / "out" / "train")
        index = load_index(store)
        assert index.extra["tars"] == "s3://bucket/tars/train"
        assert index.extra["tars_endpoint_url"] == server.endpoint_url
        assert values_of(load_arrays(store, index)[0]) == [0, 1]


# ---- What is there already -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"mine": 1}', "mine", "[1]", '{"version": 2, "shards": []}'])
def test_an_index_json_of_another_program_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    write_foreign_tar(tmp_path / "tars" / "0.tar", make_members(["0"]))
    for place, options in ((tmp_path / "tars", ()), (tmp_path / "out", ("--out", tmp_path / "out"))):
        place.mkdir(exist_ok=True)
        (place / "index.json").write_text(text)
        message = refused(capsys, "webdataset", tmp_path / "tars", *options)
        assert f"{place}/index.json is not an index of this program" in message
        assert "--out" in message
        assert (place / "index.json").read_text() == text
    assert not (tmp_path / "tars" / "0.npz").exists()


def test_an_npz_that_is_no_sidecar_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_foreign_tar(tmp_path / "0.tar", make_members(["0"]))
    for data in (b"MINE\n", b""):
        (tmp_path / "0.npz").write_bytes(data)
        message = refused(capsys, "webdataset", tmp_path)
        assert f"{tmp_path}/0.npz is no sidecar of this program" in message
        assert "--out" in message
        assert (tmp_path / "0.npz").read_bytes() == data
    assert run(capsys, "webdataset", tmp_path, "--out", tmp_path / "out")[0] == 0


def test_a_damaged_index_or_sidecar_of_ours_is_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "tars" / "0.tar", make_members(["0"]))
    command = ("webdataset", tmp_path / "tars", "--out", tmp_path / "out")
    assert run(capsys, *command)[0] == 0
    index, sidecar = tmp_path / "out" / "index.json", tmp_path / "out" / "0.npz"
    whole, whole_sidecar = index.read_bytes(), sidecar.read_bytes()
    for damaged in (whole[:100], whole.replace(b'"dtype"', b'"type"'), b""):
        index.write_bytes(damaged)
        assert "written" in run(capsys, *command)[1]
        assert index.read_bytes() == whole
    sidecar.write_bytes(b"torn")
    assert "written" in run(capsys, *command, "--skip-bad")[1]
    assert sidecar.read_bytes() == whole_sidecar


def test_the_index_of_other_tars_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a/0", "b/0", "c/train/0", "c/test/0", "d/more/0"):
        write_foreign_tar(tmp_path / f"{name}.tar", make_members(["0"]))
    for first, others in (("a", "bcd"), ("c", "abd"), ("d", "abc")):
        out = tmp_path / f"out-{first}"
        assert run(capsys, "webdataset", tmp_path / first, "--out", out)[0] == 0
        before = state(out)
        for other in others:
            message = refused(capsys, "webdataset", tmp_path / other, "--out", out)
            assert "already holds the index of other tars: choose another --out, or remove it" in message
        assert state(out) == before
        assert run(capsys, "webdataset", tmp_path / first, "--out", out, "--labels", "none")[0] == 0
    assert run(capsys, "webdataset", tmp_path / "b")[0] == 0
    assert "index of other tars" in refused(capsys, "webdataset", tmp_path / "a", "--out", tmp_path / "b")
