"""Stores: what every store promises (`StoreContract`, also run against a real S3 server), and the local one."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from ali_dist.errors import InputError, StorageError
from ali_dist.storage import open_store
from ali_dist.storage.base import ChangedObject, MissingObject, Store
from ali_dist.storage.local import TEMPORARY, LocalStore
from ali_dist.storage.s3 import S3Store

BAD_KEYS = ["", "/etc/passwd", "../out", "a/../../out", "a//b", "./a", "a/", "a\0b"]


class StoreContract:
    """Subclasses give a `store` fixture: an empty store."""

    def test_what_is_put_is_what_is_read(self, store: Store, tmp_path: Path) -> None:
        content = os.urandom(70_000)
        source = tmp_path / "source.bin"
        source.write_bytes(content[::-1])
        store.put("train/a.bin", content)
        store.put("train/from file.bin", source)
        store.put("empty", b"")
        assert store.get("train/a.bin") == content
        assert store.get("train/from file.bin") == content[::-1]
        assert store.get("empty") == b""

    def test_a_range_is_exactly_the_bytes_asked_for(self, store: Store) -> None:
        content = os.urandom(10_000)
        store.put("a", content)
        for start, length in [(0, 1), (0, 10_000), (9_999, 1), (1234, 4321), (17, 0), (10_000, 0)]:
            assert store.get_range("a", start, length) == content[start : start + length]

    def test_a_range_beyond_the_end_is_refused_not_cut_short(self, store: Store) -> None:
        store.put("a", b"0123456789")
        for start, length in [(0, 11), (9, 2), (10, 1), (500, 1), (11, 0)]:
            with pytest.raises(InputError, match="its first .* bytes are needed"):
                store.get_range("a", start, length)

    def test_an_etag_pins_the_content(self, store: Store) -> None:
        store.put("a", b"old content")
        info = store.stat("a")
        assert info is not None
        assert info.size == 11
        assert store.get_range("a", 0, 3, etag=info.etag) == b"old"
        store.put("a", b"new content!")
        for length in (0, 3):
            with pytest.raises(ChangedObject, match="'a' in .* was replaced"):
                store.get_range("a", 0, length, etag=info.etag)
        assert store.get("a") == b"new content!"

    def test_a_missing_key_is_an_input_error_that_names_key_and_store(self, store: Store) -> None:
        store.put("dir/a", b"1")
        for key in ("b", "dir", "dir/a/b"):
            assert store.stat(key) is None
            for read in (store.get, lambda k: store.get_range(k, 0, 1), lambda k: store.get_range(k, 0, 0)):
                with pytest.raises(MissingObject) as caught:
                    read(key)
                assert repr(key) in str(caught.value)
                assert store.url in str(caught.value)

    def test_list_is_recursive_sorted_relative_and_filters_by_text_prefix(self, store: Store) -> None:
        keys = ["b", "a/2", "a/10", "a.txt", "a/deep/er/x", "ab/1", "Z", "é"]
        for key in keys:
            store.put(key, key.encode())
        listed = store.list()
        assert [info.key for info in listed] == sorted(keys)
        assert [info.size for info in listed] == [len(key.encode()) for key in sorted(keys)]
        assert [info.key for info in store.list("a/")] == ["a/10", "a/2", "a/deep/er/x"]
        assert [info.key for info in store.list("a")] == ["a.txt", "a/10", "a/2", "a/deep/er/x", "ab/1"]
        assert [info.key for info in store.list("a/deep/e")] == ["a/deep/er/x"]
        assert store.list("nothing/here") == []
        assert all(store.stat(info.key) == info for info in listed)

    def test_a_child_is_the_same_store_one_folder_down(self, store: Store) -> None:
        child = store.child("runs").child("one/two")
        child.put("x", b"1")
        store.put("runs/one/twofold", b"2")
        assert child.url == f"{store.url}/runs/one/two"
        assert store.get("runs/one/two/x") == b"1"
        assert [info.key for info in child.list()] == ["x"], "a neighbour whose name begins alike is not inside"

    def test_delete_removes_only_what_is_named_and_accepts_absent_keys(self, store: Store) -> None:
        for key in ("a/1", "a/2", "b"):
            store.put(key, b"x")
        store.delete(["a/1", "b", "never/there", "a"])
        assert [info.key for info in store.list()] == ["a/2"]
        store.delete([])

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_key_cannot_leave_the_store(self, store: Store, key: str) -> None:
        for use in (store.stat, store.get, lambda k: store.put(k, b""), lambda k: store.delete([k])):
            with pytest.raises(InputError, match="give a relative path"):
                use(key)
        if key not in ("", "a/"):
            for descend in (store.list, store.child):
                with pytest.raises(InputError, match="give a relative path"):
                    descend(key)

    def test_readers_during_puts_see_one_whole_version(self, store: Store) -> None:
        versions = [bytes([v]) * (200_000 + v) for v in range(4)]
        store.put("a", versions[0])
        done, seen = threading.Event(), []

        def read() -> None:
            while not done.is_set():
                seen.append(store.get("a"))

        reader = threading.Thread(target=read)
        reader.start()
        for _ in range(5):
            for version in versions:
                store.put("a", version)
        done.set()
        reader.join()
        assert seen
        assert all(content in versions for content in seen)

    def test_a_store_survives_pickling(self, store: Store) -> None:
        store.put("a", b"1")
        assert pickle.loads(pickle.dumps(store)).get("a") == b"1"


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return open_store(str(tmp_path / "data"))

    def test_nothing_is_made_by_opening_or_reading(self, tmp_path: Path) -> None:
        store = open_store(str(tmp_path / "data"))
        assert store.list() == []
        assert store.stat("a") is None
        assert not (tmp_path / "data").exists()

    def test_full_disk_names_the_path_and_keeps_the_old_object(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.put("run/model", b"old")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"data/run/model cannot be written: no space left") as caught:
            store.put("run/model", b"new" * 1000)
        assert isinstance(caught.value.__cause__, OSError)
        assert store.get("run/model") == b"old"
        assert os.listdir(tmp_path / "data" / "run") == ["model"], "nothing may be left over"

    def test_a_killed_put_leaves_the_old_object_and_nothing_that_is_listed(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "data")
        store.put("run/model", b"old")
        script = """
            import os, signal, sys
            from pathlib import Path
            from ali_dist.storage.local import LocalStore
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
            LocalStore(Path(sys.argv[1])).put("run/model", b"new" * 100_000)
        """
        died = subprocess.run([sys.executable, "-c", textwrap.dedent(script), store.url])
        assert died.returncode == -signal.SIGKILL
        left = [name for name in os.listdir(tmp_path / "data" / "run") if name.startswith(TEMPORARY)]
        assert len(left) == 1, "the test must really have killed a put half-way"
        assert store.get("run/model") == b"old"
        assert [info.key for info in store.list()] == ["run/model"]
        store.delete(["run/model"])
        assert not (tmp_path / "data" / "run").exists(), "the remains go with the last object of the folder"

    def test_puts_and_deletes_in_one_folder_at_the_same_time_do_not_fail(self, store: Store) -> None:
        failures = []

        def work(name: str) -> None:
            try:
                for _ in range(100):
                    store.put(f"shared/{name}", b"x")
                    store.delete([f"shared/{name}"])
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_links_are_followed_and_loops_end(self, store: Store, tmp_path: Path) -> None:
        store.put("real/a", b"1")
        outside = tmp_path / "elsewhere"
        outside.mkdir()
        (outside / "b").write_bytes(b"2")
        (tmp_path / "data" / "linked").symlink_to(outside)
        (tmp_path / "data" / "real" / "loop").symlink_to(tmp_path / "data")
        assert [info.key for info in store.list("linked")] == ["linked/b"]
        assert [info.key for info in store.list("real")] == ["real/a"]

    def test_what_the_user_can_put_right_is_an_input_error(self, store: Store, tmp_path: Path) -> None:
        store.put("a", b"1")
        store.put("folder/b", b"1")
        with pytest.raises(InputError, match="data/a/b cannot be written"):
            store.put("a/b", b"below a file")
        with pytest.raises(InputError, match="data/folder cannot be written"):
            store.put("folder", b"over a folder")
        with pytest.raises(InputError, match="is a file, but a folder is needed"):
            open_store(str(tmp_path / "data" / "a")).list()
        with pytest.raises(InputError, match="gone.bin cannot be read"):
            store.put("c", tmp_path / "gone.bin")
        assert sorted(info.key for info in store.list()) == ["a", "folder/b"]


def test_urls_open_the_right_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store("data/../runs").url == str(tmp_path / "runs")
    assert open_store("~/data").url == str(tmp_path / "home" / "data")
    assert open_store("s3://bucket").url == "s3://bucket"
    assert open_store("s3://bucket/a/b/").url == "s3://bucket/a/b"
    assert open_store("s3://bucket/").child("a").url == "s3://bucket/a"


@pytest.mark.parametrize("url", ["", "gs://bucket/a", "http://host/a", "file:///a", "s3:/bucket/a", "s3://", "s3:///a"])
def test_other_places_are_refused_with_what_to_give(url: str) -> None:
    with pytest.raises(InputError, match=r"give .*s3://bucket/prefix"):
        open_store(url)


def test_endpoint_comes_from_the_argument_then_the_s3_variable_then_the_general_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def endpoint(argument: str | None = None) -> str | None:
        store = open_store("s3://bucket/a", endpoint_url=argument)
        assert isinstance(store, S3Store)
        return store.endpoint_url

    assert endpoint() is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert endpoint() == "http://127.0.0.1:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:2")
    assert endpoint() == "http://127.0.0.1:2"
    assert endpoint("http://127.0.0.1:3") == "http://127.0.0.1:3"


def test_a_wrong_endpoint_is_refused_and_a_password_in_it_is_not_repeated() -> None:
    with pytest.raises(InputError, match="'127.0.0.1:8080' is not a url"):
        open_store("s3://bucket", endpoint_url="127.0.0.1:8080")
    with pytest.raises(InputError, match="AWS_. variables") as caught:
        open_store("s3://bucket", endpoint_url="http://me:hidden@127.0.0.1:8080")
    assert "hidden" not in str(caught.value)


def test_opening_any_store_loads_no_s3_package() -> None:
    script = (
        "import sys; from ali_dist.storage import open_store; open_store('x'); open_store('s3://b/x');"
        "assert not {'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
