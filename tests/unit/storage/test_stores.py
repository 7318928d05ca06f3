"""Stores that need no server: they pass the contract of all stores, and the local one survives what disks do."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.mixture import mixture_splits
from ali_dist.errors import InputError, StorageError
from ali_dist.storage import OPENERS, is_local, open_store
from ali_dist.storage.base import Store
from ali_dist.storage.local import TEMPORARY, LocalStore, write_file
from ali_dist.storage.s3 import S3Store
from tests.helpers.memory_store import SCHEME, open_memory
from tests.helpers.store_contract import StoreContract


@pytest.fixture
def memory_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    """`memory://` urls can be opened during the test."""
    monkeypatch.setitem(OPENERS, SCHEME, open_memory)


@pytest.mark.usefixtures("memory_scheme")
class TestMemoryStore(StoreContract):
    """The example of a new backend: one module and one row."""

    @pytest.fixture
    def store(self, memory_scheme: None, tmp_path: Path) -> Store:
        return open_store(f"memory://{tmp_path.name}/data")

    def test_a_data_set_is_written_to_and_read_from_a_new_backend(self, store: Store) -> None:
        """Nothing but the row in `OPENERS` knows the scheme."""
        assert not is_local(store.url)
        write_splits(store, mixture_splits("ring", samples=20), WriteOptions())
        split = open_store(f"{store.url}/train")
        x, y = load_arrays(split, load_index(split))
        assert y is not None
        assert (len(x), len(y)) == (20, 20)

    def test_a_registered_scheme_is_named_where_a_url_is_refused(self) -> None:
        for url in ("gs://bucket/a", "memory:/somewhere"):
            with pytest.raises(InputError, match=r"is not a place for data.*\(schemes: s3, memory\)"):
                open_store(url)


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

        def fail_as_full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fail_as_full)
        with pytest.raises(
            StorageError, match=r"run/model cannot be written: no space left on device; free some space"
        ) as caught:
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

    def test_a_link_in_a_circle_is_named(self, store: Store, tmp_path: Path) -> None:
        store.put("folder/a", b"1")
        (tmp_path / "data" / "folder" / "x").symlink_to("x")
        with pytest.raises(StorageError, match="data/folder/x cannot be read: too many levels"):
            store.list()

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
        return store.access.endpoint_url

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


def test_a_file_that_cannot_be_written_again_keeps_what_it_held(tmp_path, monkeypatch):
    path = tmp_path / "new" / "page.html"
    write_file(path, b"old")

    def fail(*unused: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", fail)
        with pytest.raises(StorageError, match=r"page\.html cannot be written: no space left .* free some space"):
            write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["page.html"]
    write_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    write_file(link, b"content")
    assert target.read_bytes() == b"content"
    write_file(Path("/dev/null"), b"content")
    assert Path("/dev/null").is_char_device()
