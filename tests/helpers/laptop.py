"""Where a user with machines of their own sits: a checkout with cluster/local.yaml filled in, and the launcher."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.head import copy_project
from tests.helpers.hosts import Hosts

CHECKOUT = "/mnt/home/ali_dist"


class Laptop:
    """The laptop beside some hosts, with its checkout.

    Args:
        hosts: The machines; they need not run yet.
        head_works: Whether the head gives its CPUs to training.
    """

    def __init__(self, hosts: Hosts, *, head_works: bool = True) -> None:
        self._machine = hosts.laptop
        self.checkout = copy_project(hosts.laptop.home / "ali_dist")
        head, *workers = (machine.address for machine in hosts.machines)
        text = (self.checkout / "cluster" / "local.yaml").read_text(encoding="utf-8")
        for placeholder, value in (
            ("head_ip: CHANGE-ME", f"head_ip: {head}"),
            ("worker_ips: [CHANGE-ME, CHANGE-ME]", f"worker_ips: [{', '.join(workers)}]"),
            ("ssh_user: CHANGE-ME", "ssh_user: root"),
            ("ray start --address", "ray start --num-cpus=1 --address"),  # so that one worker fits on each
            *([] if head_works else [("ray start --head", "ray start --head --num-cpus=0 --num-gpus=0")]),
        ):
            assert text.count(placeholder) == 1, placeholder
            text = text.replace(placeholder, value)
        self.write("mine.yaml", text)

    def write(self, name: str, text: str) -> None:
        """Write a file into the checkout."""
        (self.checkout / name).write_text(text, encoding="utf-8")

    def read(self, name: str) -> str:
        """Read a file of the checkout."""
        return (self.checkout / name).read_text(encoding="utf-8")

    def words(self, *words: str | Path) -> list[str]:
        """`python -m cluster` in the checkout, as a command line."""
        return self._machine.command(
            ["env", f"--chdir={CHECKOUT}", f"{sys.prefix}/bin/python", "-m", "cluster", *words]
        )

    def run(self, *words: str | Path, timeout: float = 300) -> tuple[int, str]:
        """Run the launcher to its end; its exit code and output."""
        completed = subprocess.run(
            self.words(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        return completed.returncode, completed.stdout

    def done(self, *words: str | Path, timeout: float = 300) -> str:
        """Run the launcher, which must succeed; its output."""
        code, output = self.run(*words, timeout=timeout)
        assert code == 0, f"{words} ended with {code}:\n{output}"
        return output
