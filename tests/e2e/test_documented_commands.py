"""What the pages tell a user to type is typed here, in order, with data sets and settings that are small."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from tests.docs.pages import ROOT, command_lines
from tests.helpers.originals import (
    encode_jpeg,
    make_photo,
    write_celeba,
    write_cifar_binary,
    write_imagenet,
    write_mnist,
    write_svhn,
)
from tests.helpers.parquet_files import write_parquet
from tests.helpers.swift import SwiftServer
from tests.helpers.tars import write_foreign_tar

pytestmark = [pytest.mark.s3, pytest.mark.slow, pytest.mark.timeout(900)]

SMALL_SETTINGS = {
    "run.images": "96",
    "data.global_batch_size": "8",
    "data.lanes": "2",
    "model.width": "0.125",
    "model.latent_size": "4",
    "report.evaluation": "none",
    "scale.device": "cpu",
}
SMALLER = {"--data.labelled": "20", "--count": "1", "--draws": "2", "--seeds": "2"}
"""What these options are given instead of what a page says: there are few images here."""
NOT_RUN = {
    r"^(tests|cluster|tuning)\.": "takes a bench's time, or machines: see ELSEWHERE",
    r"^ali_dist\.explore ": "serves until it is stopped: tests/unit/commands/test_explore.py",
    r"^cluster ": "takes machines: tests/e2e/test_cluster_ssh.py",
    r"wandb|mlflow|--format onnx|--push": "takes an extra, or a network; each has tests of its own",
    r" --scale\.workers ": "takes Ray: tests/e2e/test_ray.py",
    r"^\S+$": "only names the command",
    r"(^| )(RUN|OUT|NAME|PLACE|SOURCE|DIR)( |$)": "shows which words the command takes",
    r" \.\.\./best\.yaml": "takes a sweep: tests/e2e/test_sweep.py",
}
"""Command lines that are not run here, by pattern, and why."""
ELSEWHERE = {
    "cluster": "tests/e2e/test_cluster_ssh.py",
    "cluster.checks": "tests/unit/cluster/test_checks.py",
    "tests.bench.data": "tests/unit/bench/test_data_bench.py",
    "tests.bench.evaluation": "tests/unit/bench/test_evaluation_bench.py",
    "tests.bench.launch": "tests/unit/bench/test_launch_bench.py",
    "tests.bench.lifecycle": "tests/unit/bench/test_lifecycle_bench.py",
    "tests.bench.pictures": "tests/unit/bench/test_pictures_bench.py",
    "tests.bench.promises": "tests/unit/bench/test_promises_bench.py",
    "tests.bench.recipes": "tests/unit/bench/test_recipes_bench.py",
    "tests.bench.step": "tests/unit/bench/test_step_bench.py",
    **{f"tests.bench.{name}": f"tests/unit/bench/test_{name}.py" for name in ("curves", "first_line", "floor")},
    **{f"tests.bench.{name}": f"tests/unit/bench/test_{name}.py" for name in ("growth", "kills", "ratios", "soak")},
    **{
        f"tests.bench.{name}": "tests/e2e/test_benches.py"
        for name in ("cpu_paths", "goodput", "host_memory", "identical")
    },
    **{f"tests.bench.{name}": "tests/e2e/test_benches.py" for name in ("machines", "penalised", "quality")},
    **{
        f"tests.bench.{name}": "tests/e2e/test_benches.py"
        for name in ("ray_kills", "search", "shared_machine", "sweep")
    },
    "tests.gpu.check": "tests/e2e/test_gpu_check.py",
    "tests.gpu.check.document": "tests/unit/gpu/test_figures.py",
    "tuning.sweep": "tests/e2e/test_sweep.py",
}
"""Modules of other packages that pages tell a user to run, and where a test runs them with small settings."""
PAGES = {
    "getting-started.md": (
        "ali_dist.train",
        "ali_dist.train --run.name demo",
        "ali_dist.train --run.name demo-2 --run.seed 1",
        "ali_dist.train --run.dir s3://bucket/runs --run.name digits",
    ),
    "own-images.md": (),
    "python.md": ("ali_dist.train --run.name demo",),
    "reproduction.md": (
        "ali_dist.train --run.name demo",
        "ali_dist.prepare svhn data/svhn --from FOLDER",
        "ali_dist.prepare celeba data/celeba --from FOLDER",
        "ali_dist.prepare cifar10 data/cifar10 --from FOLDER",
        "ali_dist.train --preset svhn --run.name svhn",
        "ali_dist.train --preset celeba --run.name celeba",
    ),
    "../README.md": (
        "ali_dist.train --run.name demo",
        "ali_dist.prepare folder data/mine --from PICTURES --size 32",
        "ali_dist.prepare cifar10 s3://bucket/cifar10 --from FOLDER",
        "ali_dist.train --run.dir s3://bucket/runs --run.name NAME",
    ),
}
"""Pages whose commands are run, and what they take for granted."""


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What users bring: pictures in folders and in an archive, tars, arrays, and data sets in their own formats."""
    folder = tmp_path_factory.mktemp("files")
    pictures = {
        f"{kind}/{n}.jpg": encode_jpeg(make_photo(60 + n, 70, seed=n)) for kind in ("bird", "cat") for n in range(16)
    }
    rows = ["file_name,kind", *(f"{name},{name.split('/')[0]}" for name in pictures)]
    with ZipFile(folder / "pictures.zip", "w") as archive:
        archive.writestr("metadata.csv", "\n".join(rows))
        for name, data in pictures.items():
            archive.writestr(name, data)
    for name, data in pictures.items():
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / name).write_bytes(data)
    members = [(f"{n:03d}.jpg", encode_jpeg(make_photo(64, 64, seed=n))) for n in range(len(pictures))]
    kinds = [(f"{n:03d}.json", b'{"species": "%s"}' % name.split("/")[0].encode()) for n, name in enumerate(pictures)]
    for split in ("", "train-", "val-"):
        for n in range(10):
            write_foreign_tar(folder / "http" / f"{split}{n:03d}.tar", members[3 * n : 3 * n + 3])
    write_foreign_tar(folder / "tars" / "0.tar", sorted(members + kinds))
    write_foreign_tar(folder / "downloads" / "0.tar.gz", members, "w:gz")
    arrays = np.random.default_rng(0).integers(0, 256, (24, 28, 28, 3), dtype=np.uint8)
    labels = np.arange(24).reshape(24, 1) % 3
    parts: dict[str, Any] = {
        f"{s}_{k}": v for s in ("train", "val", "test") for k, v in (("images", arrays), ("labels", labels))
    }
    np.savez(folder / "pathmnist.npz", **parts)
    originals = folder / "originals"
    write_cifar_binary(originals / "cifar10")
    write_svhn(originals / "svhn", {"train": 40, "test": 20, "extra": 40})
    write_celeba(originals / "celeba")
    write_imagenet(originals / "imagenet64")
    (originals / "imagenet64" / "imagenet_2012_validation_synset_labels.txt").write_text("n01\nn02\nn10\n" * 2)
    write_mnist(originals / "mnist")
    write_parquet(originals / "parquet" / "data" / "train-00000-of-00001.parquet", list(pictures.values()))
    return folder


@pytest.fixture(scope="module")
def host(files: Path) -> Iterator[str]:
    """The address of a web server with tars."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(files / "http")))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def put_objects(swift: SwiftServer, files: Path) -> None:
    """Make the buckets that the pages speak of, with tars in them."""
    client = swift.make_client()
    for bucket, prefix in (("bucket", "my-images"), ("public", "tars")):
        swift.make_bucket(bucket)
        for tar in (files / "http").glob("0*.tar"):
            client.put_object(Bucket=bucket, Key=f"{prefix}/{tar.name}", Body=tar.read_bytes())


def why_not_run(line: str) -> str | None:
    """Why a command line of a page is not run; None if it is."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


def run_line(line: str, host: str) -> None:
    """Run `MODULE WORDS...` in this process, with the names that stand for a user's own replaced."""
    module, *words = line.split()
    source = words[0] if words else ""
    for name, value in {
        "PICTURES": "pictures",
        "FOLDER": f"originals/{source}",
        "BUCKET": "bucket",
        "https://host": host,
    }.items():
        words = [word.replace(name, value) for word in words]
    if module == "ali_dist.train" and "--help" not in words:
        given = {"run.images", "data.global_batch_size", "model.width"}
        words = [word for place, word in enumerate(words) if not _is_given(words, place, given)]
        words += [f"--{name}={value}" for name, value in SMALL_SETTINGS.items() if f"--{name}" not in words]
    words = [SMALLER.get(words[place - 1], word) if place else word for place, word in enumerate(words)]
    if module == "ali_dist.prepare" and source != "webdataset":
        # Another line of the page may have written other data there.
        shutil.rmtree(words[2 if source == "webdataset-import" else 1], ignore_errors=True)
    if "svm" in words:
        words += ["--labels", "20"]
    try:
        found = importlib.import_module(module)
        if not hasattr(found, "main"):  # a package
            found = importlib.import_module(f"{module}.__main__")
        code = found.main(words)
    except SystemExit as end:  # of --help
        code = end.code
    assert code == 0, f"{module} {' '.join(words)} ended with {code}"


def _is_given(words: list[str], place: int, names: set[str]) -> bool:
    """Whether a word is one of the options `names`, or the value of one."""
    options = {f"--{name}" for name in names}
    return words[place] in options or (place > 0 and words[place - 1] in options)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_work(
    page: str,
    tmp_path: Path,
    files: Path,
    host: str,
    swift_env: SwiftServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_objects(swift_env, files)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for entry in files.iterdir():
        if entry.name != "tars":
            os.symlink(entry, tmp_path / entry.name)
    (tmp_path / "data").mkdir()
    os.symlink(files / "tars", tmp_path / "data" / "tars")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    lines = dict.fromkeys(" ".join([module, *words]) for module, words in command_lines(text))
    run = [line for line in lines if why_not_run(line) is None]
    assert run, f"nothing of {page} is run"
    for line in [*PAGES[page], *run]:
        run_line(line, host)


def test_every_page_with_commands_is_run_or_has_a_test_of_its_own() -> None:
    elsewhere = {
        "extending.md": "tests/docs/test_extending.py",
        "install.md": "tests/e2e/test_bare_machine.py",
        "scaling.md": "tests/e2e/test_train_command.py",
    }
    for path in sorted((ROOT / "docs").glob("*.md")):
        lines = [" ".join([module, *words]) for module, words in command_lines(path.read_text(encoding="utf-8"))]
        if any(why_not_run(line) is None for line in lines):
            assert path.name in PAGES or path.name in elsewhere, f"{path.name} has commands that no test runs"


def test_commands_of_other_packages_have_tests_that_run_them() -> None:
    pages = [ROOT / "README.md", ROOT / "cluster" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        for module, _ in command_lines(page.read_text(encoding="utf-8")):
            package = module.partition(".")[0]
            if package not in ("tests", "cluster", "tuning"):
                continue
            assert module in ELSEWHERE, f"{page.name}: no test is known to run {module}"
            text = (ROOT / ELSEWHERE[module]).read_text(encoding="utf-8")
            assert module.rpartition(".")[2] in text, f"{ELSEWHERE[module]} does not run {module}"
