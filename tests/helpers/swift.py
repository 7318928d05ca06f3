"""A real S3 server on this machine: OpenStack Swift with its S3 interface, installed from its Python package.

    python -m tests.helpers.swift ROOT [--port P]                    run until Ctrl-C; print the AWS_* settings
    python -m tests.helpers.swift ROOT --bucket NAME -- COMMAND ...  run COMMAND against it, exit with its code

The package is installed once, into a virtual environment of its own below the repository. Everything the server
writes lies in ROOT, and a later start on the same ROOT finds the same objects. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import fcntl
import http.client
import json
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

VENV = Path(__file__).resolve().parents[2] / ".swift" / "venv"
PACKAGES = ("swift==2.38.3", "eventlet==0.41.3", "pyeclib==1.8.0", "PasteDeploy==3.1.0", "xattr==1.3.0")
START_SECONDS, STOP_SECONDS = 60.0, 10.0
SERVERS = ("account", "container", "object", "proxy")
ACCESS_KEY, SECRET_KEY, REGION = "test:tester", "testing", "us-east-1"

# Where data lies depends on these two words and on the number of partitions, so they must never change.
_SWIFT_CONF = """
[swift-hash]
swift_hash_path_prefix = ali
swift_hash_path_suffix = dist
[storage-policy:0]
name = Policy-0
default = yes
"""
_COMMON = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {root}
user = {user}
workers = 0
log_level = WARNING
"""
_STORAGE = """
devices = {root}/devices
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck listing_formats bulk s3api tempauth slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
client_chunk_size = 1048576
object_chunk_size = 1048576
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:s3api]
use = egg:swift#s3api
location = {region}
""" + "".join(
    f"[filter:{name}]\nuse = egg:swift#{name}\n"
    for name in ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "slo", "dlo")
)
# Rings say which server has which data. They hold ports, so every start writes them again; with one device, data
# stays where it is.
_WRITE_RINGS = """
import json, sys
from swift.common.ring import RingBuilder
root, ports = sys.argv[1], json.loads(sys.argv[2])
for kind, port in ports.items():
    builder = RingBuilder(2, 1, 1)
    device = {"id": 0, "region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1.0}
    builder.add_dev({**device, "replication_ip": "127.0.0.1", "replication_port": port, "meta": ""})
    builder.rebalance()
    builder.get_ring().save(f"{root}/{kind}.ring.gz")
"""
# Runs a server that ends with the process that starts it, even if that is killed and can stop nothing (Linux).
_LAUNCH = """
import ctypes, os, signal, sys
starter, program = int(sys.argv[1]), sys.argv[2:]
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != starter:
    sys.exit("the process that started this server is gone")
os.execv(program[0], program)
"""


def install_swift(venv: Path = VENV) -> Path:
    """Install Swift into `venv` unless it is there, one caller at a time; returns the bin folder."""
    stamp = venv / "installed.txt"
    packages = "\n".join(PACKAGES)
    venv.parent.mkdir(parents=True, exist_ok=True)
    with (venv.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != packages:
            _run(sys.executable, "-m", "venv", "--clear", str(venv))
            _run(str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES)
            stamp.write_text(packages)  # last, so that a broken installation is repeated
    return venv / "bin"


def _run(*command: str) -> None:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with code {result.returncode}:\n{result.stdout[-4000:]}")


def _choose_ports(proxy_port: int) -> dict[str, int]:
    """Choose a free port for each server; the proxy's is `proxy_port` unless that is 0."""
    sockets = {}
    for kind in SERVERS:
        port = proxy_port if kind == "proxy" else 0
        try:
            sockets[kind] = socket.create_server(("127.0.0.1", port))  # all are open at once, so that they differ
        except OSError as error:  # otherwise another server on it would answer the health check
            raise RuntimeError(
                f"Port {port} of 127.0.0.1 cannot be used ({error.strerror}): choose another."
            ) from error
    ports = {kind: opened.getsockname()[1] for kind, opened in sockets.items()}
    for opened in sockets.values():
        opened.close()
    return ports


class SwiftServer:
    """Four Swift processes that run during the `with` block, and on Linux no longer than the thread that entered it.

    Args:
        root: Folder for data, settings and logs; its file system must support extended attributes.
        port: Port of the S3 interface; 0 chooses a free one.
    """

    access_key, secret_key, region = ACCESS_KEY, SECRET_KEY, REGION

    def __init__(self, root: Path | str, port: int = 0) -> None:
        self.root = Path(root).resolve()
        self.port = port
        self._ports: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> SwiftServer:
        programs = install_swift()
        try:
            self._configure(programs)
            for kind in SERVERS:
                self._start(programs, kind)
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """The address of the S3 interface."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment variables that a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self, name: str | None = None) -> str:
        """Make a bucket unless it exists (by default, one with a new name); returns its name."""
        client = self.make_client()
        name = name or f"test-{secrets.token_hex(6)}"
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)
        return name

    def is_running(self) -> bool:
        """Whether all four servers run."""
        return all(process.poll() is None for process in self._processes.values())

    def stop(self) -> None:
        """End the servers that this object has started; may be called twice."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # each server leads a session of its own
                process.wait()
        self._processes.clear()

    def _configure(self, programs: Path) -> None:
        """Write settings and rings for the ports of this start."""
        (self.root / "devices" / "d1").mkdir(parents=True, exist_ok=True)
        try:
            os.setxattr(self.root / "devices", "user.ali", b"1")
        except OSError as error:
            raise RuntimeError(f"{self.root} cannot hold Swift's data: no extended attributes there.") from error
        self._ports = _choose_ports(self.port)
        self.port = self._ports["proxy"]
        (self.root / "swift.conf").write_text(_SWIFT_CONF)
        values = {"root": self.root, "user": pwd.getpwuid(os.getuid()).pw_name, "secret": SECRET_KEY, "region": REGION}
        for kind, port in self._ports.items():
            text = _COMMON + (_PROXY if kind == "proxy" else _STORAGE)
            (self.root / f"{kind}.conf").write_text(text.format(**values, port=port, kind=kind))
        rings = {kind: port for kind, port in self._ports.items() if kind != "proxy"}
        _run(str(programs / "python"), "-c", _WRITE_RINGS, str(self.root), json.dumps(rings))

    def _start(self, programs: Path, kind: str) -> None:
        python, conf = str(programs / "python"), str(self.root / f"{kind}.conf")
        server = [python, str(programs / f"swift-{kind}-server"), conf, "--verbose"]  # verbose: log to the file below
        command = [python, "-c", _LAUNCH, str(os.getpid()), *server]
        with (self.root / f"{kind}.log").open("wb") as log:
            self._processes[kind] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.root
            )

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self.is_running() or time.monotonic() > deadline:
                logs = [f"--- {kind}\n{(self.root / f'{kind}.log').read_text()[-2000:]}" for kind in SERVERS]
                raise RuntimeError("Swift did not start:\n" + "\n".join(logs))
            time.sleep(0.05)

    def _answers(self) -> bool:
        """Whether all four servers accept connections and the proxy works."""
        try:
            for port in self._ports.values():
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as proxy:
                proxy.request("GET", "/healthcheck")
                return proxy.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False

    def make_client(self) -> Any:
        """Make a plain boto3 client with its own settings, for making buckets and looking at them without our store."""
        import boto3
        from botocore.config import Config

        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}),
        )


def _run_to_its_end(command: list[str], env: dict[str, str]) -> int:
    """Run a command and return its exit code. A Ctrl-C is for the command alone, which may save before it ends."""
    process = subprocess.Popen(command, env=env)
    while True:
        with suppress(KeyboardInterrupt):
            code = process.wait()
            return code if code >= 0 else 128 - code


def main(arguments: list[str]) -> int:
    """Run the server alone, or around a command; returns the exit code."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own_arguments, command = arguments[:end], arguments[end + 1 :]
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.swift", description=__doc__.partition("\n")[0])
    parser.add_argument("root", type=Path, help="folder for data, settings and logs")
    parser.add_argument("--port", type=int, default=0, help="port of the S3 interface; default: a free one")
    parser.add_argument("--bucket", help="bucket to make")
    options = parser.parse_args(own_arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves through the `with`, which stops the servers
    with SwiftServer(options.root, options.port) as server:
        if options.bucket:
            server.make_bucket(options.bucket)
        if command:
            return _run_to_its_end(command, {**os.environ, **server.env})
        print("\n".join(f"export {name}={value}" for name, value in server.env.items()))
        print(f"# S3 at {server.endpoint_url}, data in {server.root}; Ctrl-C stops it", flush=True)
        with suppress(KeyboardInterrupt):
            while server.is_running():
                time.sleep(0.5)
            print("A server has ended by itself; see the logs.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
