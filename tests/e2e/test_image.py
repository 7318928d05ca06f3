"""The container image: the Dockerfile is built for real, and the commands are run in what comes out.

The base is a minimal Debian, bare and dressed as Ray's own image, instead of Ray's, which only a registry has. Of the
Dockerfile's steps one is replaced, the installation of gigabytes, by this Python's packages, the way that users give a
ready-made stage: `--build-context dependencies=...`. Needs root, buildah, crun and debootstrap, skips itself elsewhere.
Run: `make test ARGS=tests/e2e/test_image.py`
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import ali_dist
from tests.helpers import images
from tests.helpers.images import ROOT, Buildah

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BASES = ("bare", "like-rays")


@pytest.fixture(scope="module")
def buildah(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    """buildah with localhost/bare, localhost/like-rays and localhost/dependencies."""
    reason = images.why_unavailable()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("images")
    with ExitStack() as stack:
        try:
            archive = images.make_base_archive(request.config.cache.mkdir("image"))
            tool = stack.enter_context(Buildah(folder / "storage"))
            python = tool.make_base_image(archive)
        except RuntimeError as error:
            pytest.skip(f"images cannot be built here: ...{str(error).strip()[-200:]}")
        if python != f"{sys.version_info[0]}.{sys.version_info[1]}":
            pytest.skip(f"Debian's Python {python} cannot use the packages of this one")
        tool("tag", "localhost/base", "localhost/bare")
        images.write_dependencies(folder / "dependencies")
        tool.build("localhost/dependencies", folder / "dependencies")
        (folder / "dressed").mkdir()
        (folder / "dressed" / "Dockerfile").write_text(images.RAY_LIKE_DOCKERFILE, encoding="utf-8")
        tool.build("localhost/like-rays", folder / "dressed")
        yield tool


@pytest.fixture(scope="module", params=BASES)
def image(request: pytest.FixtureRequest, buildah: Buildah) -> str:
    """A container of the image on each of the bases."""
    base = str(request.param)
    buildah.build(
        f"localhost/ali-{base}",
        ROOT,
        *("--build-arg", f"BASE_IMAGE=localhost/{base}"),
        *("--build-arg", "REVISION=abc123"),
        *("--build-context", "dependencies=container-image://localhost/dependencies"),
    )
    buildah("from", "--name", base, f"localhost/ali-{base}")
    return base


def test_the_dockerfile_with_built_packages_for_the_installation_builds_and_says_what_it_is(
    buildah: Buildah, image: str
) -> None:
    found = json.loads(buildah("inspect", "--type", "image", f"localhost/ali-{image}").stdout)["OCIv1"]["config"]
    assert found["User"] == "1000"
    assert found["WorkingDir"] == "/work"
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in found["Labels"].items()}
    assert labels["title"] == "ali-dist"
    assert labels["version"] == ali_dist.__version__
    assert labels["revision"] == "abc123"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"] == f"localhost/{image}"
    # Ray's launcher looks for HOME among the image's variables, and mounts files into root's home where it is not.
    assert "HOME=/home/ray" in found["Env"]


def test_the_commands_run_as_a_user_who_is_not_root_and_may_write_results_only(buildah: Buildah, image: str) -> None:
    assert buildah.run(image, "id", "-u").stdout == "1000\n"
    done = buildah.run(image, "python", "-m", "ali_dist.train", "--preset", "cifar10", "--dry-run")
    assert "parameters" in done.stdout
    assert "Search hyper-parameters" in buildah.run(image, "python", "-m", "tuning.sweep", "--help").stdout
    wrong = buildah.run(image, "python", "-m", "ali_dist.train", "--optim.lr_gg", "1", check=False)
    assert "optim.lr_g" in wrong.stderr
    buildah.run(image, "sh", "-c", "touch /work/x && rm /work/x && touch ~/x && rm ~/x")
    for place in ("/opt/ali/x", "/etc/x", "/usr/x"):
        assert buildah.run(image, "touch", place, check=False).returncode != 0, place


def test_the_installed_package_is_run_and_not_a_checkout(buildah: Buildah, image: str) -> None:
    code = "import ali_dist, tuning, sys; print(ali_dist.__file__, tuning.__file__, sys.prefix)"
    for name in buildah.run(image, "python", "-c", code).stdout.split():
        assert name.startswith("/opt/ali"), name


def test_login_shells_find_the_image_s_python_and_ray(buildah: Buildah, image: str) -> None:
    """Ray's launcher runs everything in `bash --login -c -i`; other tools in shells without -i or without --login."""
    for options in (["--login", "-c", "-i"], ["--login", "-c"], ["-c"]):
        found = buildah.run(image, "bash", *options, "command -v python; command -v ray; ray --version").stdout
        assert found.splitlines()[:2] == ["/opt/ali/bin/python", "/opt/ali/bin/ray"], options
        assert "version" in found.splitlines()[2], options


def names(folder: str) -> set[str]:
    """Every file and link below a folder, relative to it; not what is mounted into containers while they run."""
    found = set()
    for path, _, files in os.walk(folder):
        found |= {os.path.relpath(os.path.join(path, name), folder) for name in files}
    return {name for name in found if not name.startswith(("proc/", "sys/", "dev/", "run/", "tmp/"))}


def test_nothing_is_left_of_the_build_but_the_environment_and_its_path(buildah: Buildah, image: str) -> None:
    """No compiler, no cache of pip or apt, no source, no wheel: the image differs from its base in few places."""
    buildah("from", "--name", f"before-{image}", f"localhost/{image}")
    buildah("from", "--name", f"after-{image}", f"localhost/ali-{image}")
    before, after = (names(buildah("mount", f"{when}-{image}").stdout.strip()) for when in ("before", "after"))
    users = ("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/subuid", "etc/subgid")  # and copies, name-
    new = {name for name in after - before if not name.startswith(("opt/ali/", *users))}
    assert new - {"etc/hosts", "etc/resolv.conf"} <= {"etc/profile.d/ali.sh", "home/ray/.bashrc"}  # two are buildah's
    assert before <= after
    assert not [name for name in after if Path(name).name in ("gcc", "cc", "g++", "make", "cmake")]
    environment = [name for name in after if name.startswith("opt/ali/")]
    assert any("ali_dist/train.py" in name for name in environment)
    assert not [name for name in environment if name.endswith(".whl") or "/tests/" in name]


@pytest.mark.ray
@pytest.mark.parametrize("image", ["like-rays"], indirect=True)
def test_ray_starts_in_the_image_and_lets_nobody_in_without_the_token(buildah: Buildah, image: str) -> None:
    script = """
        export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef
        ray start --head --node-ip-address=127.0.0.1 --num-cpus=0 --dashboard-host=127.0.0.1 --disable-usage-stats &&
        echo started && ray health-check --address 127.0.0.1:6379 && echo healthy
        RAY_AUTH_TOKEN=ffffffffffffffffffffffffffffffff ray status 2>&1 | grep --only-matching InvalidAuthToken
    """
    done = buildah.run_alone(image, "bash", "-c", script)
    for word in ("started", "healthy", "InvalidAuthToken"):
        assert word in done.stdout.splitlines(), done.stdout + done.stderr
