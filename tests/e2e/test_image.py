"""The container image: the Dockerfile is built, and the commands are run in the image.

The base is a minimal Debian, once as it is and once set up like Ray's own image, which only a registry has. One step of
the Dockerfile is replaced: instead of installing gigabytes, the build takes this Python's packages, in the way in which
users give it a ready-made stage (`--build-context dependencies=...`). The tests need root, buildah, crun and
debootstrap, and are skipped elsewhere.
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
    """The name of a container of the image on one of the bases."""
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


def test_the_dockerfile_builds_an_image_with_its_labels_user_and_folders(buildah: Buildah, image: str) -> None:
    config = json.loads(buildah("inspect", "--type", "image", f"localhost/ali-{image}").stdout)["OCIv1"]["config"]
    assert config["User"] == "1000"
    assert config["WorkingDir"] == "/work"
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["title"] == "ali-dist"
    assert labels["version"] == ali_dist.__version__
    assert labels["revision"] == "abc123"
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"] == f"localhost/{image}"
    # Ray's launcher looks for HOME among the image's variables, and mounts files into root's home if there is none.
    assert "HOME=/home/ray" in config["Env"]


def test_the_commands_run_as_a_user_who_is_not_root_and_can_write_only_results(buildah: Buildah, image: str) -> None:
    assert buildah.run(image, "id", "-u").stdout == "1000\n"
    dry_run = buildah.run(image, "python", "-m", "ali_dist.train", "--preset", "cifar10", "--dry-run")
    assert "parameters" in dry_run.stdout
    assert "Search hyper-parameters" in buildah.run(image, "python", "-m", "tuning.sweep", "--help").stdout
    mistake = buildah.run(image, "python", "-m", "ali_dist.train", "--optim.lr_gg", "1", check=False)
    assert "optim.lr_g" in mistake.stderr
    buildah.run(image, "sh", "-c", "touch /work/x && rm /work/x && touch ~/x && rm ~/x")
    for path in ("/opt/ali/x", "/etc/x", "/usr/x"):
        assert buildah.run(image, "touch", path, check=False).returncode != 0, path


def test_the_installed_package_runs_and_not_a_checkout(buildah: Buildah, image: str) -> None:
    code = "import ali_dist, tuning, sys; print(ali_dist.__file__, tuning.__file__, sys.prefix)"
    for name in buildah.run(image, "python", "-c", code).stdout.split():
        assert name.startswith("/opt/ali"), name


def test_login_shells_find_the_image_s_python_and_ray(buildah: Buildah, image: str) -> None:
    """Ray's launcher runs everything in `bash --login -c -i`; other tools leave out -i or --login."""
    for options in (["--login", "-c", "-i"], ["--login", "-c"], ["-c"]):
        output = buildah.run(image, "bash", *options, "command -v python; command -v ray; ray --version").stdout
        python, ray, version = output.splitlines()[:3]
        assert (python, ray) == ("/opt/ali/bin/python", "/opt/ali/bin/ray"), options
        assert "version" in version, options


def list_files(folder: str) -> set[str]:
    """Every file and link below a folder, relative to it, without what is mounted into containers while they run."""
    names = set()
    for path, _, files in os.walk(folder):
        names |= {os.path.relpath(os.path.join(path, name), folder) for name in files}
    return {name for name in names if not name.startswith(("proc/", "sys/", "dev/", "run/", "tmp/"))}


def test_the_build_leaves_only_the_environment_and_its_path(buildah: Buildah, image: str) -> None:
    """The image differs from its base in few files: no compiler, no cache of pip or apt, no source code, no wheel."""
    buildah("from", "--name", f"before-{image}", f"localhost/{image}")
    buildah("from", "--name", f"after-{image}", f"localhost/ali-{image}")
    before, after = (list_files(buildah("mount", f"{when}-{image}").stdout.strip()) for when in ("before", "after"))
    # These files of the users' names have copies with a dash at the end.
    users = ("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/subuid", "etc/subgid")
    new = {name for name in after - before if not name.startswith(("opt/ali/", *users))}
    of_buildah = {"etc/hosts", "etc/resolv.conf"}
    assert new - of_buildah <= {"etc/profile.d/ali.sh", "home/ray/.bashrc"}
    assert before <= after
    assert not [name for name in after if Path(name).name in ("gcc", "cc", "g++", "make", "cmake")]
    environment = [name for name in after if name.startswith("opt/ali/")]
    assert any("ali_dist/train.py" in name for name in environment)
    assert not [name for name in environment if name.endswith(".whl") or "/tests/" in name]


@pytest.mark.ray
@pytest.mark.parametrize("image", ["like-rays"], indirect=True)
def test_ray_starts_in_the_image_and_refuses_another_token(buildah: Buildah, image: str) -> None:
    script = """
        export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef
        ray start --head --node-ip-address=127.0.0.1 --num-cpus=0 --dashboard-host=127.0.0.1 --disable-usage-stats &&
        echo started && ray health-check --address 127.0.0.1:6379 && echo healthy
        RAY_AUTH_TOKEN=ffffffffffffffffffffffffffffffff ray status 2>&1 | grep --only-matching InvalidAuthToken
    """
    completed = buildah.run_alone(image, "bash", "-c", script)
    for line in ("started", "healthy", "InvalidAuthToken"):
        assert line in completed.stdout.splitlines(), completed.stdout + completed.stderr
