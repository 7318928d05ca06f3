"""Training as a job on a head that asks for a token: exit codes, what travels, stop and go on."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.head import Head, started_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "not-to-be-seen-7f3a9c"


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with started_head(tmp_path_factory.mktemp("jobs")) as started:
        yield started


def command_lines() -> str:
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


def test_a_job_gets_code_and_storage_access_but_no_history_data_or_results(head):
    """And the command's own exit code comes back, which Ray's own command turns into 1."""
    show = 'ls -A; echo "key=$AWS_SECRET_ACCESS_KEY debug=$NCCL_DEBUG other=$UNRELATED"; sleep 2; exit 3'
    running = head.launch(
        "submit",
        head.address,
        "--follow",
        "--env",
        "NCCL_DEBUG=INFO",
        "--",
        "bash",
        "-c",
        show,
        env={"AWS_SECRET_ACCESS_KEY": SECRET, "UNRELATED": SECRET},
    )
    seen = ""
    while running.poll() is None:
        seen += command_lines()
        time.sleep(0.02)
    said = running.stdout.read()
    assert running.returncode == 3, said
    assert f"key={SECRET} debug=INFO other=\n" in said
    assert {"ali_dist", "pyproject.toml"} <= set(said.split())
    assert not {".git", ".venv", "runs", "data"} & set(said.split())
    assert "bash -c ls -A" in seen.replace("'", "")
    assert SECRET not in seen
    # The command printed the key, so its own output has it; nothing else that Ray or we leave on disk does.
    left = [file for folder in (head.temp, head.checkout.parent) for file in folder.rglob("*") if file.is_file()]
    assert [file.name for file in left if SECRET.encode() in file.read_bytes()] == [f"job-driver-{job_of(said)}.log"]


def job_of(said: str) -> str:
    return re.findall(r"Job (\S+) runs", said)[0]


def test_the_exit_code_of_training_is_the_launchers(head):
    words = ["python", "-m", "ali_dist.train", "--optim.lr_q=1"]
    ended, said = head.run("submit", head.address, "--follow", "--", *words)
    assert ended == 2, said
    assert "optim.lr_q" in said


def test_a_job_that_is_stopped_saves_and_the_same_command_goes_on(head, tmp_path):
    images = 24 * 20_000
    runs = tmp_path / "runs" / "stopped"
    train = ["python", "-m", "ali_dist.train", "--preset=mixture-ring", f"--data.url={tmp_path / 'ring'}"]
    train += [f"--run.dir={tmp_path / 'runs'}", "--run.name=stopped", "--data.global_batch_size=24", "--data.lanes=6"]
    train += ["--model.width=0.25", "--report.evaluation=none", f"--report.checkpoint_every={24 * 50}"]
    code, said = head.run("submit", head.address, "--", *train, f"--run.images={images}")
    assert code == 0, said
    job = job_of(said)
    deadline = time.monotonic() + 150
    while not list(runs.glob("checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline, head.run("logs", head.address, job)
        time.sleep(0.2)
    code, said = head.run("stop", head.address, job)
    assert (code, said.strip().splitlines()[-1]) == (0, f"Job {job} is STOPPED.")
    summary = json.loads((runs / "summary.json").read_text())
    assert (summary["status"], summary["world_size"]) == ("stopped", 1)
    assert (runs / "checkpoints" / f"step-{summary['step']:09d}" / "manifest.json").exists()
    code, said = head.run("logs", head.address, job)
    assert code == 75
    assert "run the same command to go on" in said
    left = ["--", *train, f"--run.images={summary['images'] + 24 * 10}"]
    code, said = head.run("submit", head.address, "--follow", *left)
    assert code == 0, said
    assert f"Continuing from the checkpoint at image {summary['images']:,}" in said
    assert json.loads((runs / "summary.json").read_text())["restarts"] == 1


def test_a_run_that_the_cluster_can_never_hold_is_refused_with_what_there_is(head, tmp_path):
    train = ["python", "-m", "ali_dist.train", "--scale.workers=3", f"--run.dir={tmp_path}", "--preset=mixture-ring"]
    code, said = head.run("submit", head.address, "--follow", "--", *train)
    assert code == 2
    assert "3 workers with 1 CPU each" in said
    assert "1 machine with 2 CPU" in said


def test_a_run_started_on_the_heads_machine_joins_its_cluster(head, tmp_path):
    """As Ray finds it: by the file that `ray start` leaves in Ray's folder. Refused, so that no worker has to start."""
    (tmp_path / "ray").symlink_to(head.temp)
    train = ["-m", "ali_dist.train", "--scale.workers=3", f"--run.dir={tmp_path}/runs", "--preset=mixture-ring"]
    env = {**head.env, "RAY_TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, *train], cwd=head.checkout, env=env, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "1 machine with 2 CPU" in done.stderr  # our own cluster would have been given 3


def test_mistakes_are_sentences(head, tmp_path):
    other = tmp_path / "home"
    (other / ".ray").mkdir(parents=True)
    (other / ".ray" / "auth_token").write_text("f" * 64)
    cases = [
        (["stop", head.address, "raysubmit_none"], {}, "has no job 'raysubmit_none'"),
        (["status", head.address], {"HOME": str(other)}, "does not know the token"),
        (["status", "http://127.0.0.1:1"], {}, "Ray does not answer"),
        (["submit", head.address, "--env", "NO_SUCH", "--", "true"], {}, "NO_SUCH: the variable is not set"),
    ]
    for words, env, sentence in cases:
        code, said = head.run(*words, env=env)
        assert code == 2, said
        assert sentence in said
        assert said.count("\n") == 1, said


def test_status_shows_machines_and_jobs(head: Head):
    code, said = head.run("status", head.address)
    assert code == 0
    assert "2 CPU  (head)" in said
    assert "python -m ali_dist.train --optim.lr_q=1" in said
