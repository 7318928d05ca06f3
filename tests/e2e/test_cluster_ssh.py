"""cluster/local.yaml as a user fills it in, on machines with real SSH servers in network namespaces.

This needs root on Linux and the tools of tests/helpers/hosts.py, and is skipped elsewhere.
Run: `make test ARGS=tests/e2e/test_cluster_ssh.py`
"""

import json
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.hosts import SHARED, Hosts, why_not
from tests.helpers.laptop import Laptop

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

if (_skip_reason := why_not()) is not None:
    pytest.skip(_skip_reason, allow_module_level=True)

TRAIN = ["python", "-m", "ali_dist.train", "--preset=mixture-ring", f"--data.url={SHARED}/ring", "--scale.threads=1"]
TRAIN += ["--data.source=mixture-ring", f"--run.dir={SHARED}/runs"]
TRAIN += ["--data.global_batch_size=24", "--data.lanes=6", "--model.width=0.25"]
TRAIN += ["--report.evaluation=none", f"--report.checkpoint_every={24 * 50}", f"--report.log_every={24 * 50}"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three machines and a laptop. The head coordinates and does not train."""
    hosts = Hosts(tmp_path_factory.mktemp("site"), 3)
    laptop = Laptop(hosts, head_works=False)
    with hosts:
        yield hosts, laptop
        laptop.run("down", "mine.yaml")


def test_mistakes_are_reported_before_anything_is_started(site):
    hosts, laptop = site
    mine, address = laptop.read("mine.yaml"), hosts.machines[1].address
    hosts.laptop.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/mnt/home/.ssh/unauthorized")
    absent = address.rpartition(".")[0] + ".99"
    for text, sentence in [
        (laptop.read("cluster/local.yaml"), "placeholders at auth.ssh_user, provider.head_ip, provider.worker_ips"),
        (mine.replace("id_ed25519", "id_absent"), "there is no such file"),
        (mine.replace("id_ed25519", "unauthorized"), f"{address} does not let root in"),
        (mine.replace("ssh_user: root", "ssh_user: nobody-here"), f"{address} does not let nobody-here in"),
        (mine.replace(address, absent), f"{absent} cannot be reached by SSH"),
        ("apiVersion: ray.io/v1\nkind: RayJob\n", "kubectl apply"),
        ("head: [", "cannot be read as YAML"),
    ]:
        laptop.write("wrong.yaml", text)
        code, output = laptop.run("up", "wrong.yaml")
        assert (code, output.count("\n")) == (2, 1), output
        assert sentence in output
    code, output = laptop.run("status", "mine.yaml")
    assert code == 2
    assert "start it with python -m cluster up mine.yaml" in output


def test_a_machine_without_python_is_named(tmp_path):
    hosts = Hosts(tmp_path, 1, provisioned=False)
    laptop = Laptop(hosts)
    with hosts:
        shell = hosts.machines[0].home / ".bashrc"
        shell.write_text("python3.11() { return 1; }; python3() { return 1; }\nexport -f python3.11 python3\n")
        code, output = laptop.run("up", "mine.yaml")
        assert code == 2
        assert f"{hosts.machines[0].address} has no Python 3.11 with venv" in output


def test_a_machine_that_cannot_be_set_up_is_named_before_ray_starts(site):
    """`ray up` alone leaves a worker's errors in the head's logs."""
    hosts, laptop = site
    mine = laptop.read("mine.yaml")
    broken = f"""  - test $(hostname) != {hosts.machines[2].name} || {{ echo "no space left" >&2; exit 3; }}"""
    laptop.write("broken.yaml", mine.replace("setup_commands:", f"setup_commands:\n{broken}", 1))
    code, output = laptop.run("up", "broken.yaml")
    assert (code, output.count("\n")) == (1, 2), output
    assert output.endswith(f"cluster: {hosts.machines[2].address} could not be set up: no space left\n")
    for machine in hosts.machines:
        assert (machine.home / "ali" / "setup.sh").exists()
        assert (machine.home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
        assert not machine.processes("ray")


def test_an_elastic_run_continues_on_one_machine_when_the_other_is_lost(site):
    """Two machines train, and the head gets no work. A run whose folder only the head has is refused first."""
    hosts, laptop = site
    laptop.done("up", "mine.yaml")
    token = hosts.laptop.home / ".ray" / "auth_token"
    assert oct(token.stat().st_mode & 0o777) == "0o600"
    output = laptop.done("status", "mine.yaml")
    assert output.count(" CPU") == 2, output
    assert "no work  (head)" in output

    local_train = [word.replace(f"--run.dir={SHARED}", "--run.dir=/mnt/own") for word in TRAIN]
    code, output = laptop.run(
        "submit", "mine.yaml", "--follow", "--", *local_train, "--scale.workers=2", "--run.name=unseen"
    )
    assert code == 2, output
    assert re.search("The machine [0-9.]+ does not see /mnt/own/runs, the folder of runs: on several machines", output)

    images = 24 * 4000
    elastic = [*TRAIN, "--scale.workers=1:2", "--run.name=lost", f"--run.images={images}"]
    following = subprocess.Popen(
        laptop.words("submit", "mine.yaml", "--follow", "--", *elastic),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: list_checkpoints(hosts, "lost"), following)
    hosts.machines[2].kill()
    output, _ = following.communicate(timeout=240)
    assert following.returncode == 0, output
    # Ray Train prints these lines each time it starts workers.
    started = re.findall(r"- \(ip=([0-9.]+), pid=\d+\) world_rank=(\d)", output)
    remaining, lost = hosts.machines[1].address, hosts.machines[2].address
    assert sorted(address for address, _ in started[:2]) == [remaining, lost]
    assert started[2:] == [(remaining, "0")]
    summary = json.loads((hosts.shared / "runs" / "lost" / "summary.json").read_text())
    assert (summary["status"], summary["world_size"], summary["images"]) == ("finished", 1, images)
    assert summary["restarts"] == 1
    assert "Continuing from the checkpoint at image" in output

    hosts.machines[2].start()
    laptop.done("down", "mine.yaml")
    for machine in hosts.machines:
        assert not machine.processes("ray")
    code, _ = laptop.run("status", "mine.yaml")
    assert code == 2


def list_checkpoints(hosts: Hosts, name: str) -> list[Path]:
    return list((hosts.shared / "runs" / name).glob("checkpoints/*/manifest.json"))


def wait_for(condition, process: subprocess.Popen, timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
