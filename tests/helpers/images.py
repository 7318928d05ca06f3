"""Container images without a container engine or a registry: buildah in chroots, on a base that debootstrap makes.

This needs root and the Debian packages buildah, crun and debootstrap. All images live in a folder of their own and are
removed with it. The Debian mirror is the one that this machine's apt uses.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
HOST_PACKAGES = "/opt/given"  # where containers see this Python's packages
TOOLS = ("buildah", "debootstrap", "crun", "unshare", "ip")


def why_unavailable() -> str | None:
    """Explain why images cannot be built on this machine; None if they probably can."""
    if os.geteuid() != 0:
        return "images are built by root only"
    tools = [name for name in TOOLS if shutil.which(name) is None]
    if tools:
        return f"{', '.join(tools)} not installed (Debian: buildah crun debootstrap util-linux iproute2)"
    return None if find_debian_mirror() else "no Debian mirror among this machine's apt sources"


def find_debian_mirror() -> tuple[str, str] | None:
    """Find (release, address) of the Debian main archive that apt uses on this machine."""
    release = re.search(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    folder = Path("/etc/apt")
    files = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*.sources"))]
    text = "\n".join(path.read_text(errors="replace") for path in files if path.is_file())
    address = re.search(r"^(?:URIs:|deb)\s+(?:\[[^\]]*\]\s+)?(\S+/debian/?)(?:\s|$)", text, re.MULTILINE)
    return (release[1], address[1]) if release and address else None


def make_base_archive(folder: Path) -> Path:
    """Make a tar of a minimal Debian with Python and venv in `folder`, unless it is there already; some 280 MB.

    Raises:
        RuntimeError: If debootstrap fails, as without a way to the mirror; the message has its last line.
    """
    debian_mirror = find_debian_mirror()
    assert debian_mirror is not None, "why_unavailable() says so"
    release, address = debian_mirror
    archive = folder / f"{release}.tar"
    if archive.exists():
        return archive
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    # It gets mounts of its own, so that none is left on the machine if it is ended halfway.
    options = ["--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
    command = ["unshare", "--mount", "debootstrap", *options, release, str(tree), address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode:
        raise RuntimeError(f"debootstrap fails: {(done.stdout + done.stderr).strip().splitlines()[-1]}")
    subprocess.run(["tar", "--one-file-system", "-C", tree, "-cf", folder / "part", "."], check=True)
    shutil.rmtree(tree)
    return (folder / "part").rename(archive)


class Buildah:
    """buildah with a storage of its own, which is removed when the block ends.

    Args:
        folder: An empty folder, for some gigabytes of storage.

    Raises:
        RuntimeError: If buildah cannot work here, as without the right to mount; the message has its last line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages = Path(sysconfig.get_paths()["purelib"])
        for self.driver in ("overlay", "vfs"):  # layers are shared if the kernel can do that, else copied
            done = self("from", "--name", "probe", "scratch", check=False)
            if not done.returncode:
                self("rm", "probe")
                return
        raise RuntimeError(f"buildah fails: {done.stderr.strip().splitlines()[-1]}")

    def __enter__(self) -> Buildah:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self("umount", "--all", check=False)
        self("rm", "--all", check=False)
        self("rmi", "--all", "--force", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *arguments: str | Path) -> list[str]:
        """Make the command line of one call."""
        storage = ["--root", str(self.folder / "root"), "--runroot", str(self.folder / "run")]
        return ["buildah", *storage, "--storage-driver", self.driver, *map(str, arguments)]

    def __call__(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run buildah once; with `check`, a failure is a RuntimeError with buildah's output."""
        return self._run(self.command(*arguments), check)

    def make_base_image(self, archive: Path) -> str:
        """Make the image localhost/base from the tar of a Debian; returns the version of its Python, such as 3.11.

        Raises:
            RuntimeError: If images cannot be made, or commands cannot be run in them, on this machine.
        """
        self("from", "--name", "empty", "scratch")
        self("add", "--quiet", "empty", archive, "/")
        self("commit", "--quiet", "empty", "localhost/base")
        self("from", "--name", "probe", "localhost/base")
        code = "import sys; print(*sys.version_info[:2], sep='.')"
        return self.run("probe", "python3", "-c", code).stdout.strip()

    def build(self, tag: str, context: Path, *arguments: str | Path) -> None:
        """Build an image from a folder with a Dockerfile, while this Python's packages are mounted at HOST_PACKAGES."""
        self("bud", "--volume", f"{self.packages}:{HOST_PACKAGES}:ro", *arguments, "--tag", tag, context)

    def run(self, container: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, as the image's user, in its folder and with its variables."""
        return self._run_inside([], container, command, check)

    def run_alone(self, container: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command that sees only its own processes and network (127.0.0.1); all that it starts ends with it."""
        isolation = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        return self._run_inside(
            [*isolation, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"], container, command, check=False
        )

    def _run_inside(
        self, prefix: list[str], container: str, command: tuple[str, ...], check: bool
    ) -> subprocess.CompletedProcess[str]:
        # The output goes to files: buildah 1.28 now and then loses what a command in a chroot wrote last.
        results = Path(tempfile.mkdtemp(dir=self.folder))
        results.chmod(0o777)
        volumes = ["--volume", f"{self.packages}:{HOST_PACKAGES}:ro", "--volume", f"{results}:/results"]
        shell = ["sh", "-c", 'exec "$@" > /results/out 2> /results/err', "sh", *command]
        done = self._run([*prefix, *self.command("run", *volumes, container, "--", *shell)], check=False)
        out, err = (path.read_text() if path.exists() else "" for path in (results / "out", results / "err"))
        if check and done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{out}\n{err}\n{done.stderr}")
        return subprocess.CompletedProcess(command, done.returncode, out, err)

    def _run(self, command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        variables = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done


def write_dependencies(folder: Path) -> None:
    """Write a build folder in place of the Dockerfile's stage `dependencies`: /opt/ali with this Python's packages."""
    lines = [
        "FROM localhost/base",
        "USER root",
        "RUN /usr/bin/python3 -m venv --without-pip /opt/ali"
        f" && echo {HOST_PACKAGES} > $(echo /opt/ali/lib/python3*/site-packages)/given.pth",
        "COPY ray /opt/ali/bin/ray",
    ]
    folder.mkdir()
    (folder / "Dockerfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    script = "#!/opt/ali/bin/python\nimport sys\nfrom ray.scripts.scripts import main\nsys.exit(main())\n"
    (folder / "ray").write_text(script, encoding="utf-8")
    (folder / "ray").chmod(0o755)


# What Ray's own image adds: user 1000, whose login shells put another Python and another ray in front.
RAY_LIKE_DOCKERFILE = """\
FROM localhost/base
RUN useradd --create-home --home-dir /home/ray --shell /bin/bash --uid 1000 --gid 100 ray \\
    && mkdir -p /home/ray/conda/bin \\
    && for name in python ray; do ln -s /bin/false /home/ray/conda/bin/$name; done \\
    && echo 'export PATH=/home/ray/conda/bin:$PATH' >> /home/ray/.bashrc
ENV HOME=/home/ray
USER 1000
"""
