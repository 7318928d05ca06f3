"""Training as a job on a head that asks for a token: exit codes, what travels, and how a stopped job goes on."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.commands import _describe_ray_variables
from tests.helpers.head import Head, started_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SECRET = "not-to-be-seen-7f3a9c"


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with started_head(tmp_path_factory.mktemp("jobs")) as started:
        yield started


def read_command_lines() -> str:
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return "\n".join(lines)


def test_a_job_gets_code_and_storage_access_but_no_history_data_or_results(head):
    """Besides, the command's own exit code comes back, which Ray's own command turns into 1."""
    script = 'ls -A; echo "key=$AWS_SECRET_ACCESS_KEY debug=$NCCL_DEBUG other=$UNRELATED"; sleep 2; exit 3'
    running = head.start_launcher(
        "submit",
        head.address,
        "--follow",
        "--env",
        "NCCL_DEBUG=INFO",
        "--",
        "bash",
        "-c",
        script,
        env={"AWS_SECRET_ACCESS_KEY": SECRET, "UNRELATED": SECRET},
    )
    command_lines = ""
    while running.poll() is None:
        command_lines += read_command_lines()
        time.sleep(0.02)
    output = running.stdout.read()
    assert running.returncode == 3, output
    assert f"key={SECRET} debug=INFO other=\n" in output
    assert {"ali_dist", "pyproject.toml"} <= set(output.split())
    assert not {".git", ".venv", "runs", "data"} & set(output.split())
    assert "bash -c ls -A" in command_lines.replace("'", "")
    assert SECRET not in command_lines
    # The command printed the key, so its own output has it; nothing else that Ray or we leave on disk does.
    files = [file for folder in (head.temp, head.checkout.parent) for file in folder.rglob("*") if file.is_file()]
    assert [file.name for file in files if SECRET.encode() in file.read_bytes()] == [
        f"job-driver-{job_id_in(output)}.log"
    ]


def job_id_in(output: str) -> str:
    return re.findall(r"Job (\S+) runs", output)[0]


def test_the_exit_code_of_training_is_the_launchers(head):
    words = ["python", "-m", "ali_dist.train", "--optim.lr_q=1"]
    code, output = head.run_launcher("submit", head.address, "--follow", "--", *words)
    assert code == 2, output
    assert "optim.lr_q" in output


def test_a_job_whose_results_would_be_deleted_with_it_is_refused(head):
    code, output = head.run_launcher("submit", head.address, "--follow", "--", "python", "-m", "ali_dist.train")
    assert code == 2, output
    assert "run.dir is 'runs', but a Ray job runs in a copy of the project that Ray deletes" in output


def test_rays_own_command_works_with_the_variables_that_up_names(head):
    said = _describe_ray_variables(int(head.address.rpartition(":")[2]))
    variables = dict(word.split("=") for word in said.split() if "=" in word)
    words = ["job", "submit", "--no-wait", "--", "true"]
    done = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", *words],
        cwd=head.checkout,
        env={**head.env, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_job_that_is_stopped_saves_and_the_same_command_goes_on(head, tmp_path):
    images = 24 * 20_000
    runs = tmp_path / "runs" / "stopped"
    train = ["python", "-m", "ali_dist.train", "--preset=mixture-ring", f"--data.url={tmp_path / 'ring'}"]
    train += ["--data.source=mixture-ring", f"--run.dir={tmp_path / 'runs'}", "--run.name=stopped"]
    train += ["--data.global_batch_size=24", "--data.lanes=6"]
    train += ["--model.width=0.25", "--report.evaluation=none", f"--report.checkpoint_every={24 * 50}"]
    code, output = head.run_launcher("submit", head.address, "--", *train, f"--run.images={images}")
    assert code == 0, output
    job = job_id_in(output)
    deadline = time.monotonic() + 150
    while not list(runs.glob("checkpoints/*/manifest.json")):
        assert time.monotonic() < deadline, head.run_launcher("logs", head.address, job)
        time.sleep(0.2)
    code, output = head.run_launcher("stop", head.address, job)
    assert (code, output.strip().splitlines()[-1]) == (0, f"Job {job} is STOPPED.")
    summary = json.loads((runs / "summary.json").read_text())
    assert (summary["status"], summary["world_size"]) == ("stopped", 1)
    assert (runs / "checkpoints" / f"step-{summary['step']:09d}" / "manifest.json").exists()
    code, output = head.run_launcher("logs", head.address, job)
    assert code == 75
    assert "run the same command to go on" in output
    shorter = ["--", *train, f"--run.images={summary['images'] + 24 * 10}"]
    code, output = head.run_launcher("submit", head.address, "--follow", *shorter)
    assert code == 0, output
    assert f"Continuing from the checkpoint at image {summary['images']:,}" in output
    assert json.loads((runs / "summary.json").read_text())["restarts"] == 1


def test_a_run_that_the_cluster_can_never_hold_is_refused_with_what_there_is(head, tmp_path):
    train = ["python", "-m", "ali_dist.train", "--scale.workers=3", f"--run.dir={tmp_path}", "--preset=mixture-ring"]
    code, output = head.run_launcher("submit", head.address, "--follow", "--", *train)
    assert code == 2
    assert "3 workers with 1 CPU each" in output
    assert "1 machine with 2 CPU" in output


def test_a_run_started_on_the_heads_machine_joins_its_cluster(head, tmp_path):
    """Ray finds it by the file that `ray start` leaves in Ray's folder. The run is refused: no worker starts."""
    (tmp_path / "ray").symlink_to(head.temp)
    train = ["-m", "ali_dist.train", "--scale.workers=3", f"--run.dir={tmp_path}/runs", "--preset=mixture-ring"]
    env = {**head.env, "RAY_TMPDIR": str(tmp_path)}
    completed = subprocess.run([sys.executable, *train], cwd=head.checkout, env=env, capture_output=True, text=True)
    assert completed.returncode == 2, completed.stderr
    assert "1 machine with 2 CPU" in completed.stderr  # our own cluster would have been given 3


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
        code, output = head.run_launcher(*words, env=env)
        assert code == 2, output
        assert sentence in output
        assert output.count("\n") == 1, output


def test_status_shows_machines_and_jobs(head: Head):
    code, output = head.run_launcher("status", head.address)
    assert code == 0
    assert "2 CPU  (head)" in output
    assert "python -m ali_dist.train --optim.lr_q=1" in output
