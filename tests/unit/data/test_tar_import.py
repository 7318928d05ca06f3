"""Tars over http and compressed tars are written as shards of our own, whole or not at all."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.data.preparation.tar_stream import expand_urls
from ali_dist.data.shards.index import load_index, load_sidecar
from ali_dist.data.shards.reader import load_arrays
from ali_dist.errors import InputError
from ali_dist.storage.local import LocalStore
from tests.helpers.commands import content, refused, run
from tests.helpers.tars import encode_image, make_members, values_of, write_foreign_tar

IMPORT = "webdataset-import"


class TarServer:
    """Serves files from a dict on a free port of 127.0.0.1.

    Of files in `cut`, only half is sent, and in `status` are answers to give instead, one for each request. Ranges are
    given if `etag` is set. The path `circle` leads to itself.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: list[str] = []
        self.status: list[int] = []
        self.etag = ""
        self.circle = ""
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                server.requests.append(self.path)
                data = server.files.get(path)
                if path == server.circle:
                    self.send_response(302)
                    self.send_header("Location", path)
                    self.end_headers()
                    return
                if data is None or server.status:
                    self.send_error(server.status.pop(0) if server.status else 404)
                    return
                start = 0
                if server.etag and self.headers.get("If-Range") == server.etag:
                    start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                self.send_response(206 if start else 200)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - start))
                if server.etag:
                    self.send_header("ETag", server.etag)
                    self.send_header("Accept-Ranges", "bytes")
                self.end_headers()
                stop = len(data)
                if path in server.cut:
                    server.cut.remove(path)
                    stop = (start + stop) // 2
                self.wfile.write(data[start:stop])

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[TarServer]:
    started = TarServer()
    yield started
    started.close()


def tar_bytes(folder: Path, members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    path = folder / "made.tar"
    write_foreign_tar(path, members, mode)
    data = path.read_bytes()
    path.unlink()
    return data


def loaded(folder: Path) -> tuple[list[int], Any]:
    store = LocalStore(folder)
    x, y = load_arrays(store, load_index(store))
    return values_of(x), None if y is None else y.tolist()


def test_a_list_of_urls_is_written_as_splits_with_the_same_classes(
    tmp_path: Path, server: TarServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files = {
        "/train-000.tar": tar_bytes(tmp_path, make_members(["dog", "cat"])),
        "/train-001.tar": tar_bytes(tmp_path, make_members(["dog"])),
        "/val-000.tar": tar_bytes(tmp_path, make_members(["emu", "cat"])),
    }
    source = f"{server.url}/train-{{000..001}}.tar::{server.url}/val-000.tar"
    code, out, err = run(capsys, IMPORT, source, tmp_path / "out", "--verify")
    assert (code, err) == (0, "")
    assert "train: 3 samples in 1 shard, written" in out
    assert "valid: 2 samples in 1 shard, written" in out
    assert loaded(tmp_path / "out" / "train") == ([0, 1, 0], [1, 0, 1])
    assert loaded(tmp_path / "out" / "valid") == ([0, 1], [2, 0])
    index = load_index(LocalStore(tmp_path / "out" / "train"))
    assert (index.classes, index.encoding) == (("cat", "dog", "emu"), "raw")
    assert load_sidecar(LocalStore(tmp_path / "out" / "train"), index, 0).origins == ("0", "1", "0")
    asked = len(server.requests)
    assert "already there" in run(capsys, IMPORT, source, tmp_path / "out")[1]
    assert len(server.requests) == asked
    assert "already holds other data" in refused(capsys, IMPORT, source, tmp_path / "out", "--shard-mb", 1)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_read_and_images_of_any_size_cut_to_squares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    members = [
        ("README.md", b"x"),
        *[("a.jpg", encode_image(40, "JPEG", (30, 20))), ("a.json", b'{"x": 1, "y": 0}')],
        *[("b.webp", encode_image(80, "WEBP", (16, 50), lossless=True)), ("b.json", b'{"x": 0, "y": 1}')],
        *[("c.png", encode_image(120, mode="L", size=(8, 8))), ("c.json", b'{"x": true, "y": 1}')],
    ]
    write_foreign_tar(tmp_path / "tars" / "0.tar.gz", members, mode)
    assert "are read with webdataset-import" in refused(capsys, "webdataset", tmp_path / "tars")
    code, out, err = run(capsys, IMPORT, tmp_path / "tars" / "*.gz", tmp_path / "out", "--size", 8, "--verify")
    assert (code, err) == (0, "")
    assert "1 no part of a sample (README.md)" in out
    values, y = loaded(tmp_path / "out")
    assert np.abs(np.subtract(values, [40, 80, 120])).max() <= 2
    assert y == [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]
    index = load_index(LocalStore(tmp_path / "out"))
    assert (index.shape, index.attributes) == ((3, 8, 8), ("x", "y"))


def test_options_of_reading_are_those_of_indexing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [
        *make_members([{"kind": "b", "n": 900}, {"kind": "a", "n": 7}]),
        *[("torn.png", encode_image(1)[:40]), ("torn.json", b'{"kind": "a"}')],
        *[("clear.png", encode_image(0, mode="RGBA")), ("clear.json", b'{"kind": "c"}')],
        ("bare.png", encode_image(3)),
    ]
    write_foreign_tar(tmp_path / "0.tar", members)
    options = ("--labels", "json:kind", "--background", "#0a0a0a", "--encoding", "png", "--shard-mb", 0.001)
    assert "'torn'" in refused(capsys, IMPORT, tmp_path / "0.tar", tmp_path / "out", "--labels", "none")
    assert "'bare'" in refused(capsys, IMPORT, tmp_path / "0.tar", tmp_path / "other", *options)
    code, out, _ = run(capsys, IMPORT, tmp_path / "0.tar", tmp_path / "out", *options, "--skip-bad")
    assert code == 0
    assert loaded(tmp_path / "out") == ([0, 1, 10], [1, 0, 2])
    index = load_index(LocalStore(tmp_path / "out"))
    assert (index.classes, index.encoding, len(index.shards)) == (("a", "b", "c"), "png", 3)
    assert "put on #0a0a0a (clear)" in out
    assert "1 unreadable image (torn)" in out
    assert "1 no label (bare)" in out
    assert sorted(content(tmp_path / "out"))[-1] == "index.json"  # no mark of what is unfinished


def test_numbers_that_are_no_attributes_are_found_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_foreign_tar(tmp_path / "0.tar", make_members([{"a": 1}] * 70 + [{"a": 5}]))
    code, out, _ = run(capsys, IMPORT, tmp_path / "0.tar", tmp_path / "out")
    assert code == 0
    assert "not all 0 or 1 ('a' is 5)" in out
    assert loaded(tmp_path / "out")[1] is None


def test_a_broken_connection_is_no_end_of_the_data(
    tmp_path: Path, server: TarServer, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tar_bytes(tmp_path, make_members(["1"] * 30))
    server.files = {"/0.tar": data, "/0.tar.gz": gzip.compress(data)}
    for name in server.files:
        server.cut = [name]
        code, out, err = run(capsys, IMPORT, server.url + name, tmp_path / "out", "--labels", "none")
        assert (code, out) == (1, "")
        assert "broke off after" in err
        assert err.count("\n") == 1
    assert not (tmp_path / "out" / "index.json").exists()
    server.cut = []
    assert run(capsys, IMPORT, f"{server.url}/0.tar.gz", tmp_path / "out")[0] == 0
    assert loaded(tmp_path / "out")[0] == list(range(30))


def test_reading_goes_on_where_a_connection_broke_off_if_the_file_is_the_same(
    tmp_path: Path, server: TarServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ali_dist.data.preparation.tar_stream._WAIT_SECONDS", 0.0)
    server.files = {"/0.tar": tar_bytes(tmp_path, make_members(["1"] * 30))}
    server.etag, server.cut, server.status = '"a"', ["/0.tar"] * 3, [503, 429, 500]
    assert run(capsys, IMPORT, f"{server.url}/0.tar", tmp_path / "out", "--labels", "none")[0] == 0
    assert loaded(tmp_path / "out")[0] == list(range(30))
    server.cut, server.etag = ["/0.tar"] * 3, 'W/"a"'
    code, _, err = run(capsys, IMPORT, f"{server.url}/0.tar", tmp_path / "other", "--labels", "none")
    assert code == 1
    assert "broke off after" in err
    server.cut, server.status = [], [503] * 9
    code, _, err = run(capsys, IMPORT, f"{server.url}/0.tar", tmp_path / "other")
    assert code == 1
    assert "the server answers 503" in err


@pytest.mark.parametrize("cut", [1500, 512 * 8, 512 * 9])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_tar_that_is_cut_or_damaged_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], cut: int, is_compressed: bool
) -> None:
    data = tar_bytes(tmp_path, make_members(["1"] * 9))
    damaged = data[: 512 * 9] + b"\xff" * 512 + data[512 * 10 :]
    for name, content_ in (("cut", data[:cut]), ("damaged", damaged)):
        path = tmp_path / f"{name}.tar"
        path.write_bytes(gzip.compress(content_) if is_compressed else content_)
        assert "is not a whole tar (" in refused(capsys, IMPORT, path, tmp_path / "out")


def test_secrets_in_urls_are_in_no_message_and_no_index(
    tmp_path: Path, server: TarServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.files = {"/0.tar": tar_bytes(tmp_path, make_members(["1", "0"])), "/bad.tar": b"no tar" * 1000}
    for path in ("/missing.tar", "/bad.tar"):
        code, out, err = run(capsys, IMPORT, f"{server.url}{path}?sig=SECRET", tmp_path / "bad")
        assert code == 2
        assert "SECRET" not in out + err
        assert path in err
    assert run(capsys, IMPORT, f"{server.url}/0.tar?sig=SECRET", tmp_path / "out")[0] == 0
    assert server.requests[-1] == "/0.tar?sig=SECRET"
    assert all(b"SECRET" not in data for data in content(tmp_path / "out").values())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("pipe:touch {folder}/ran", "scheme 'pipe'"),
        ("{folder}/0.tar::pipe:touch {folder}/ran", "scheme 'pipe'"),
        ("PIPE:touch {folder}/ran", "scheme 'PIPE'"),
        ("s3://bucket/0.tar", "scheme 's3'"),
        ("ftp://host/0.tar", "scheme 'ftp'"),
        ("{folder}/missing-*.tar", "There is no file"),
        ("{folder}", "There are no tars in"),
        ("{folder}/a{{.tar", "There is no file|cannot be expanded"),
    ],
)
def test_what_is_no_tar_to_import_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, words: str
) -> None:
    message = refused(capsys, IMPORT, source.replace("{folder}", str(tmp_path)), tmp_path / "out")
    assert any(word in message for word in words.split("|"))
    assert content(tmp_path) == {}


def test_an_import_takes_two_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "takes TARS and OUT, but 1 places are given" in refused(capsys, IMPORT, tmp_path)
    assert "takes OUT, but 2 places are given" in refused(capsys, "digits", tmp_path, tmp_path)


def test_tars_over_http_are_not_indexed_in_place(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "webdataset", "http://user:SECRET@host/0.tar?sig=SECRET")
    assert "http://host/0.tar cannot be indexed in place: import them with webdataset-import" in message


def test_folders_of_tars_with_equal_names_are_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, labels in (("train", ["1", "0"]), ("Val", ["1"])):
        write_foreign_tar(tmp_path / folder / "0.tar.gz", make_members(labels), "w:gz")
    code, out, _ = run(capsys, IMPORT, f"{tmp_path}/{{train,Val}}/0.tar.gz", tmp_path / "out")
    assert code == 0
    assert "train: 2 samples" in out
    assert "valid: 1 sample" in out


def test_environment_variables_and_lists_are_expanded_as_webdataset_does(tmp_path: Path) -> None:
    assert expand_urls("http://host/{a,b}-{08..10}.tar") == tuple(
        f"http://host/{name}-{number}.tar" for name in "ab" for number in ("08", "09", "10")
    )
    with pytest.raises(InputError, match="There is no file"):
        expand_urls(str(tmp_path / "{0..3}.tar"))


def test_a_file_that_a_shard_would_overwrite_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_foreign_tar(tmp_path / "0.tar", make_members(["0"]))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.npz").write_text("MINE")
    assert "holds other data, such as 00000.npz" in refused(capsys, IMPORT, tmp_path / "0.tar", tmp_path / "out")
    assert (tmp_path / "out" / "00000.npz").read_text() == "MINE"


@pytest.mark.parametrize("options", [(), ("--labels", "cls"), ("--labels", "none"), ("--skip-bad",)])
@pytest.mark.parametrize("count", [3, 700])  # more than are studied, too
def test_a_sample_with_its_members_apart_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], count: int
) -> None:
    members = make_members(["1"] * count)
    write_foreign_tar(tmp_path / "0.tar", sorted(members, key=lambda member: member[0].endswith(".cls")))
    message = refused(capsys, IMPORT, tmp_path / "0.tar", tmp_path / "out", *options)
    if count == 3 or "cls" not in options:
        assert f"Sample '0' of {tmp_path}/0.tar has its png and its cls apart" in message
        assert "prepare webdataset`" in message
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_key_that_comes_again_and_texts_apart_are_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [("README.md", b"x"), *make_members(["3", "1"]), *make_members(["2"]), ("README.txt", b"x")]
    write_foreign_tar(tmp_path / "0.tar", members)
    assert run(capsys, IMPORT, tmp_path / "0.tar", tmp_path / "out")[0] == 0
    assert loaded(tmp_path / "out") == ([0, 1, 0], [3, 1, 2])


def test_a_circle_of_redirections_is_refused_in_one_sentence(
    tmp_path: Path, server: TarServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.circle = "/0.tar"
    message = refused(capsys, IMPORT, f"{server.url}/0.tar", tmp_path / "out")
    assert "0.tar cannot be read (the server answers 302 and redirects in a circle" in message
