"""Machines for tests: network, process and mount namespaces with an SSH server in each, joined by a bridge.

    with Hosts(folder, workers=2) as hosts:
        hosts.laptop.run("ssh", ...)        # where a user sits
        hosts.machines[1].kill()            # the power goes off
        hosts.machines[1].start()

Each machine has its own address, home, temporary folder, /dev/shm and processes; all see /mnt/shared. The project's
virtual environment is there, read-only, at ~/ali/venv; the project's code is not. Needs root, sshd, rsync, ip and
unshare.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
SHARED = "/mnt/shared"
_HOME = "/mnt/home"
_NUMBERS = itertools.count()
_PROGRAMS = ("/usr/sbin/sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "nsenter", "setpriv")
_SSHD = """\
HostKey /mnt/own/host_key
AuthorizedKeysFile /mnt/home/.ssh/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
PidFile none
"""


def why_not() -> str | None:
    """Why there can be no such machines here; None if there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    absent = [program for program in _PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt: openssh-server rsync iproute2 util-linux)"
    attempt = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "ip", "link", "add", "probe", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return None if attempt.returncode == 0 else f"namespaces are not allowed here: {attempt.stderr.strip()}"


class Machine:
    """One machine.

    Args:
        folder: Its own files; beside it lies the folder that all machines share.
        name: Its host name, and the name of its network namespace.
        address: Its address in the network of all machines.
        bridge: Name of the bridge that joins them.
        key: The user's key pair, whose public half opens the machine; None: a machine without an SSH server.
        provisioned: Whether the virtual environment is there.
    """

    def __init__(
        self, folder: Path, name: str, address: str, bridge: str, key: Path | None, *, provisioned: bool = True
    ) -> None:
        self.folder = folder
        self.name = name
        self.address = address
        self._bridge = bridge
        self.home = folder / "home"
        (self.home / ".ssh").mkdir(parents=True)
        if provisioned:
            (self.home / "ali" / "venv").mkdir(parents=True)
        lines = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
        accounts = [f"root:x:0:0:root:{_HOME}:/bin/bash" if line.startswith("root:") else line for line in lines]
        (folder / "passwd").write_text("\n".join(accounts) + "\n", encoding="utf-8")
        if key is not None:
            shutil.copy(key.with_suffix(".pub"), self.home / ".ssh" / "authorized_keys")
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / "host_key")
            (folder / "sshd_config").write_text(_SSHD, encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Power on: connect to the network and start the SSH server."""
        outside = f"v{self.name}"[:15]
        _run("ip", "netns", "add", self.name)
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _run("ip", "link", "set", outside, "master", self._bridge, "up")
        # The hardware address is the same after the power was off.
        hardware_address = "02:00:" + ":".join(f"{int(part):02x}" for part in self.address.split("."))
        for words in (
            f"link set eth0 address {hardware_address}",
            f"addr add {self.address}/24 dev eth0",
            "link set eth0 up",
            "link set lo up",
        ):
            _run("ip", "-n", self.name, *words.split())
        shutil.rmtree(self.folder / "tmp", ignore_errors=True)
        spaces = ["unshare", "--pid", "--fork", "--mount", "--uts", "--mount-proc", "--kill-child"]
        script = [ROOT / "tests/helpers/host.sh", self.folder, self.name, sys.prefix, ROOT]
        with (self.folder / "log").open("ab") as log:
            with_parent = ["setpriv", "--pdeathsig", "KILL"]  # where the test itself is killed, its machines go with it
            self._process = subprocess.Popen(
                [*with_parent, "ip", "netns", "exec", self.name, *spaces, "bash", *map(str, script)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 20
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {(self.folder / 'log').read_text()}")
            time.sleep(0.05)

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError, IndexError):
            command = Path(f"/proc/{self.init()}/comm").read_text(encoding="utf-8").strip()
            return command in ("sshd", "sleep")
        return False

    def init(self) -> int:
        """Pid of its first process, seen from here."""
        assert self._process is not None, "the machine runs"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text(encoding="utf-8")
        return int(children.split()[0])

    def kill(self) -> None:
        """Power off: every process on it ends at once, and it leaves the network."""
        if self._process is None:
            return
        with contextlib.suppress(OSError, IndexError):
            os.kill(self.init(), signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._process = None
        _run("ip", "netns", "delete", self.name)
        subprocess.run(["ip", "link", "delete", f"v{self.name}"[:15]], capture_output=True, check=False)

    def is_running(self) -> bool:
        """Whether its power is on."""
        return self._process is not None

    def set_link(self, state: str) -> None:
        """Cut it off from the network (`down`), or connect it again (`up`)."""
        _run("ip", "link", "set", f"v{self.name}"[:15], state)

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """`words` as a command line that runs on this machine, in the user's home."""
        spaces = ["nsenter", f"--target={self.init()}", "--net", "--mount", "--pid", "--uts"]
        return [
            *spaces,
            "env",
            f"--chdir={_HOME}",
            "--unset=RAY_ADDRESS",
            f"HOME={_HOME}",
            "TERM=dumb",
            *map(str, words),
        ]

    def run(self, *words: str | Path, timeout: float = 300, env: dict[str, str] | None = None) -> str:
        """Run a command that must succeed; its output."""
        completed = self.attempt(*words, timeout=timeout, env=env)
        assert completed.returncode == 0, f"{words} ended with {completed.returncode}:\n{completed.stdout}"
        return completed.stdout

    def attempt(
        self, *words: str | Path, timeout: float = 300, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail; both of its outputs come together."""
        return subprocess.run(
            self.command(words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **(env or {})},
        )

    def processes(self, name: str) -> list[int]:
        """Pids, as the machine sees them, of processes whose command line contains `name`."""
        completed = self.attempt("pgrep", "-f", name)
        return [int(line) for line in completed.stdout.split()] if completed.returncode == 0 else []

    def raylet_options(self) -> dict[str, str]:
        """Options of Ray's own process on it, by name."""
        words = self.run("cat", f"/proc/{self.processes('raylet/raylet')[0]}/cmdline").split("\0")
        return dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)


class Hosts:
    """A laptop and machines beside it.

    Args:
        folder: Everything is kept here; the shared folder is `folder/shared`.
        machines: How many machines there are, the laptop not counted.
        provisioned: Whether machines have the virtual environment already.
    """

    def __init__(self, folder: Path, machines: int = 3, *, provisioned: bool = True) -> None:
        self.folder = folder
        number = next(_NUMBERS)
        prefix = f"{os.getpid() % 0xFFFF:04x}{number:x}"  # other tests may have hosts on this machine, too
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        self._bridge = f"ali{prefix}"
        self.key = folder / "id_ed25519"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key)
        network = f"10.231.{(os.getpid() + 17 * number) % 250}"
        self.laptop = Machine(folder / "laptop", f"{prefix}l", f"{network}.10", self._bridge, None, provisioned=False)
        for file in (self.key, self.key.with_suffix(".pub")):
            shutil.copy(file, self.laptop.home / ".ssh" / file.name)
        self.machines = [
            Machine(
                folder / f"m{n}",
                f"{prefix}m{n}",
                f"{network}.{11 + n}",
                self._bridge,
                self.key,
                provisioned=provisioned,
            )
            for n in range(machines)
        ]

    def __enter__(self) -> Hosts:
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "link", "set", self._bridge, "up")
        try:
            for machine in (self.laptop, *self.machines):
                machine.start()
        except BaseException:
            self._power_off()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._power_off()

    def _power_off(self) -> None:
        for machine in (self.laptop, *self.machines):
            with contextlib.suppress(subprocess.CalledProcessError):
                machine.kill()
        _run("ip", "link", "delete", self._bridge)


def _run(*words: str | Path) -> None:
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
