"""`S3Store` and the Swift helper on a real S3 server: the store contract, and what only a real server refuses."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from ali_dist.errors import InputError
from ali_dist.storage import open_store
from ali_dist.storage.base import Store
from ali_dist.storage.s3 import S3Store
from tests.helpers.store_contract import StoreContract
from tests.helpers.swift import SwiftServer, install_swift

pytestmark = pytest.mark.s3
MIB = 1024 * 1024


def open_s3(url: str, attempts: int = 6) -> S3Store:
    return replace(cast(S3Store, open_store(url, attempts=attempts)), wait_seconds=0.05)


class TestS3Prefix(StoreContract):
    """The contract below a prefix of a bucket that also holds other things."""

    @pytest.fixture
    def store(self, swift_env: SwiftServer) -> Store:
        bucket = swift_env.make_bucket()
        swift_env.make_client().put_object(Bucket=bucket, Key="some/where-else", Body=b"not ours")
        return open_s3(f"s3://{bucket}/some/where")


class TestS3Bucket(StoreContract):
    """The contract at the root of a bucket."""

    @pytest.fixture
    def store(self, swift_env: SwiftServer) -> Store:
        return open_s3(f"s3://{swift_env.make_bucket()}/")


@pytest.fixture
def store(swift_env: SwiftServer) -> S3Store:
    return open_s3(f"s3://{swift_env.make_bucket()}/data")


def test_a_listing_of_several_pages_is_complete_and_sorted(store: S3Store) -> None:
    keys = sorted(f"shard-{i}" for i in range(23))
    for key in keys:
        store.put(key, b"x")
    assert [info.key for info in replace(store, page_size=5).list()] == keys


def test_folder_markers_of_other_tools_are_not_objects(store: S3Store, swift: SwiftServer) -> None:
    swift.make_client().put_object(Bucket=store.bucket, Key="data/train/", Body=b"")
    store.put("train/a", b"x")
    assert [info.key for info in store.list()] == ["train/a"]


def test_a_large_file_goes_up_in_parts_and_ranges_cross_their_borders(store: S3Store, tmp_path: Path) -> None:
    store = replace(store, part_bytes=5 * MIB)
    content = os.urandom(12 * MIB)
    (tmp_path / "large").write_bytes(content)
    store.put("large", tmp_path / "large")
    info = store.stat("large")
    assert info is not None
    assert info.etag.endswith("-3"), "it must really have gone up in 3 parts"
    assert store.list() == [info]
    for border in (5 * MIB, 10 * MIB):
        assert store.get_range("large", border - 100, 200, etag=info.etag) == content[border - 100 : border + 100]
    assert store.get("large") == content
    store.delete(["large"])
    assert store.list() == []


def test_delete_takes_more_keys_than_go_into_one_request(store: S3Store) -> None:
    store.put("k/110", b"x")
    store.delete([f"k/{i}" for i in range(120)])
    assert store.list() == []


def test_a_missing_bucket_is_named_with_its_endpoint_by_every_operation(swift_env: SwiftServer) -> None:
    store = open_s3("s3://no-such-bucket/data")
    for use in (
        store.list,
        lambda: store.stat("a"),
        lambda: store.get("a"),
        lambda: store.put("a", b"x"),
        lambda: replace(store, part_bytes=1).put("a", b"xx"),
        lambda: store.delete(["a"]),
    ):
        with pytest.raises(InputError, match=f"no bucket 'no-such-bucket' at {swift_env.endpoint_url}: create it"):
            use()


def test_a_wrong_secret_is_refused_at_once_and_not_repeated(store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-and-hidden")
    for use in (store.list, lambda: store.stat("a"), lambda: store.get("a"), lambda: store.put("a", b"x")):
        with pytest.raises(InputError, match="refuses access to s3://.*AWS_SECRET_ACCESS_KEY") as caught:
            use()
        assert "hidden" not in str(caught.value)


def test_no_credentials_fail_fast_even_where_a_machine_role_is_looked_for(swift_env: SwiftServer) -> None:
    bucket = swift_env.make_bucket()
    # A metadata service that is not there: port 1 refuses, as off-cloud networks do.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": swift_env.endpoint_url,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    script = f"from ali_dist.storage import open_store; open_store('s3://{bucket}').list()"
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=30)
    assert "InputError: There are no S3 credentials for" in result.stderr


def test_threads_read_their_own_ranges(store: S3Store) -> None:
    content, parts, parts_read = os.urandom(MIB), 16, {}
    store.put("a", content)
    step = MIB // parts

    def read(part: int) -> None:
        parts_read[part] = store.get_range("a", part * step, step)

    threads = [threading.Thread(target=read, args=(part,)) for part in range(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert b"".join(parts_read[part] for part in range(parts)) == content


def _read_every_key(store: S3Store, first: int, count: int) -> None:
    for turn in range(20):
        key = str((first + turn) % count)
        assert store.get(key) == key.encode() * 1000


def test_forked_processes_never_get_each_others_answers(store: S3Store) -> None:
    count = 8
    for i in range(count):
        store.put(str(i), str(i).encode() * 1000)
    _read_every_key(store, 0, count)  # the connection that children must not share
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_read_every_key, args=(store, 2 * i, count)) for i in range(4)]
    for child in children:
        child.start()
    _read_every_key(store, 1, count)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * 4


def test_the_server_keeps_its_data_over_a_restart_on_other_ports(tmp_path: Path) -> None:
    with SwiftServer(tmp_path) as first:
        first.make_bucket("kept")
        first.make_client().put_object(Bucket="kept", Key="a", Body=b"1")
    with SwiftServer(tmp_path) as second:
        assert second.endpoint_url != first.endpoint_url
        assert second.make_client().get_object(Bucket="kept", Key="a")["Body"].read() == b"1"


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/healthcheck", timeout=5).close()
    except OSError:
        return False
    return True


@pytest.fixture
def foreground(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.helpers.swift", str(tmp_path / "root"), "--bucket", "mine"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_servers_end_with_the_process_that_started_them(foreground: subprocess.Popen[str], sent: int) -> None:
    assert foreground.stdout is not None
    line = foreground.stdout.readline()
    url = line.strip().removeprefix("export AWS_ENDPOINT_URL=")
    assert _answers(url)
    foreground.send_signal(sent)
    foreground.wait(30)
    deadline = time.monotonic() + 30
    while _answers(url):
        assert time.monotonic() < deadline, "a server outlived its starter"
        time.sleep(0.05)


def test_a_command_runs_against_the_server_and_its_code_is_handed_on(tmp_path: Path) -> None:
    script = """
        import sys
        from ali_dist.storage import open_store
        open_store("s3://mine/a").put("b", b"1")
        sys.exit(7 if open_store("s3://mine").get("a/b") == b"1" else 1)
    """
    ours = [sys.executable, "-m", "tests.helpers.swift", str(tmp_path), "--bucket", "mine"]
    result = subprocess.run([*ours, "--", sys.executable, "-c", textwrap.dedent(script)])
    assert result.returncode == 7


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.helpers.swift._PROXY", "[app:something-else]\n")
    with pytest.raises(RuntimeError, match="(?s)Swift did not start.*--- proxy.*No section 'proxy-server'"):
        SwiftServer(tmp_path).__enter__()


def test_a_port_that_is_taken_is_said_and_not_mistaken_for_the_own_server(tmp_path: Path, swift: SwiftServer) -> None:
    with pytest.raises(RuntimeError, match=f"Port {swift.port} of 127.0.0.1 cannot be used"):
        SwiftServer(tmp_path, port=swift.port).__enter__()


def test_installing_again_changes_nothing() -> None:
    before = (install_swift() / "python").stat().st_ctime_ns
    assert (install_swift() / "python").stat().st_ctime_ns == before
