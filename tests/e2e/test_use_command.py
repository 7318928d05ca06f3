"""A trained model used from the shell: interrupted, without optional packages, and with everything in S3."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ali_dist import encode, evaluate, generate
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.prepare import main as prepare
from ali_dist.storage import open_store
from ali_dist.train import main as train
from tests.helpers.arrays import write_arrays
from tests.helpers.processes import ROOT
from tests.helpers.runs import command_line_for, tiny_config
from tests.helpers.trained import run_folder, trained


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("use")
    ensure_prepared("digits", str(folder / "data"))
    return run_folder(trained(folder, folder / "data"))


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A data set of many shards."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    write_arrays(folder / "train", rng.integers(0, 256, (4000, 1, 8, 8), dtype=np.uint8), None)
    return folder


def start_command(module: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"ali_dist.{module}", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_an_interrupted_encoding_goes_on_and_ends_like_an_unbroken_one(run, large, tmp_path, number, code):
    words = (run, "--data", large, "--workers", 1)
    process = start_command("encode", *words, "--out", tmp_path / "broken")
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("broken/*.npz")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert not json.loads((tmp_path / "broken" / "features.json").read_text())["complete"]
    assert encode.main([*map(str, words), "--out", str(tmp_path / "broken")]) == 0
    assert encode.main([*map(str, words), "--out", str(tmp_path / "unbroken")]) == 0
    broken, unbroken = (sorted((tmp_path / name).glob("*.npz")) for name in ("broken", "unbroken"))
    assert [path.name for path in broken] == [path.name for path in unbroken]
    for mine, theirs in zip(broken, unbroken, strict=True):
        assert np.array_equal(np.load(mine)["features"], np.load(theirs)["features"])


def test_using_a_local_run_needs_neither_ray_nor_s3_nor_webdataset(run, tmp_path):
    program = (
        "import sys\n"
        "for name in ('ray', 'boto3', 'botocore', 'webdataset'): sys.modules[name] = None\n"
        "from ali_dist import encode, evaluate, generate\n"
        f"run, out = {str(run)!r}, {str(tmp_path)!r}\n"
        "codes = [encode.main([run, '--out', out + '/f.npz']), generate.main([run, '--out', out]),\n"
        "         evaluate.main([run, '--samples', '50'])]\n"
        "sys.exit(max(codes))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert finished.returncode == 0, finished.stderr


@pytest.mark.s3
def test_run_data_and_features_may_all_be_in_s3(tmp_path, swift_env, monkeypatch, capsys):
    bucket = f"s3://{swift_env.make_bucket()}"
    assert prepare(["digits", f"{bucket}/digits"]) == 0
    config = tiny_config(tmp_path, data__url=f"{bucket}/digits", run__dir=f"{bucket}/runs")
    assert train(command_line_for(config)) == 0
    monkeypatch.chdir(tmp_path)
    run = f"{bucket}/runs/tiny"
    for out in (f"{bucket}/features", f"{bucket}/features.npz", f"{tmp_path}/local.npz"):
        assert encode.main([run, "--out", out]) == 0
    stored = open_store(bucket)
    assert json.loads(stored.get("features/features.json"))["complete"]
    (tmp_path / "remote.npz").write_bytes(stored.get("features.npz"))
    local, remote = (np.load(tmp_path / name)["features"] for name in ("local.npz", "remote.npz"))
    assert np.array_equal(local, remote)
    assert generate.main([run, "--count", "4"]) == 0
    assert (tmp_path / "generated" / "tiny" / "samples-seed0.png").exists()
    capsys.readouterr()
    assert evaluate.main([f"{bucket}/runs/tinny"]) == 2
    assert "did you mean tiny" in capsys.readouterr().err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    assert generate.main([run]) == 2
    errors = capsys.readouterr().err
    assert "AWS_SECRET_ACCESS_KEY" in errors
    assert "not-the-secret" not in errors
