"""The launcher's reading of a cluster's file, its words, and what a machine asks about itself; no SSH, no Ray."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ali_dist.errors import InputError
from cluster import host, ssh
from cluster import ray_cli as ray_commands
from cluster.__main__ import main
from cluster.cluster_file import ClusterFile, load_cluster_file
from cluster.entry import MARK, with_access
from cluster.jobs import choose_environment

ROOT = Path(__file__).resolve().parents[3]
LOCAL = ROOT / "cluster" / "local.yaml"


def filled(folder: Path, **provider: object) -> Path:
    """local.yaml as a user would fill it in."""
    found = yaml.safe_load(LOCAL.read_text(encoding="utf-8"))
    found["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"], **provider}
    key = folder / "key"
    key.touch()
    found["auth"] = {"ssh_user": "me", "ssh_private_key": str(key)}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(found), encoding="utf-8")
    return file


def test_a_filled_in_file_names_machines_user_and_key(tmp_path: Path) -> None:
    cluster = load_cluster_file(filled(tmp_path))
    assert cluster.machines == ("10.0.0.1", "10.0.0.2")
    assert (cluster.user, cluster.key, cluster.is_local) == ("me", tmp_path / "key", True)


def test_ray_itself_accepts_the_file(tmp_path: Path) -> None:
    """Its own check of names and types, as `ray up` makes it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(filled(tmp_path).read_text(encoding="utf-8"))))


def test_everything_a_user_must_change_stands_above_the_line_and_is_all_that_is_refused() -> None:
    top, line, below = LOCAL.read_text(encoding="utf-8").partition("# ---- nothing below has to be changed")
    assert line
    assert top.count("CHANGE-ME") == 4
    assert "CHANGE-ME" not in below
    with pytest.raises(InputError, match="auth.ssh_user, provider.head_ip, provider.worker_ips"):
        load_cluster_file(LOCAL)


def test_the_cluster_is_closed_and_carries_no_keys_and_no_history() -> None:
    found = yaml.safe_load(LOCAL.read_text(encoding="utf-8"))
    head, worker = (" ".join(found[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head + worker
    mounts = found["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all((ROOT / source).is_file() for source in mounts.values()), "files one by one: no folder, so no .git"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ("There is no file",)),
        ("a: [", ("cannot be read as YAML",)),
        ("- a", ("does not describe a Ray cluster",)),
        ("provider: {type: local}", ("does not describe a Ray cluster", "cluster_name")),
        ("apiVersion: ray.io/v1\nkind: RayJob", ("kubectl apply",)),
        ("cluster_name: a\nprovider: {type: local, head_ip: a}", ("provider.worker_ips",)),
        ("cluster_name: a\nprovider: {type: local, head_ip: a, worker_ips: [b, a]}", ("names a machine twice",)),
        ("cluster_name: a\nprovider: {type: local, head_ip: a, worker_ips: []}", ("auth.ssh_user",)),
        ("cluster_name: a\nprovider: {type: aws, region: <region>}", ("placeholders at provider.region",)),
        ("cluster_name: a\nprovider: {type: aws}\nauth: {ssh_private_key: ~/none}", ("no such file", "ssh-keygen")),
    ],
)
def test_a_wrong_file_is_one_sentence_with_the_fix(
    text: str | None, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    assert main(["status", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["go"], "'go' is no command"),
        (["up"], "up takes FILE.yaml"),
        (["stop", "mine.yaml"], "stop takes FILE.yaml JOB"),
        (["submit", "mine.yaml"], "submit needs the command after --"),
        (["up", "mine.yaml", "--fast"], "no option --fast"),
        (["up", "http://127.0.0.1:8265"], "takes the YAML file"),
    ],
)
def test_wrong_words_are_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert sentence in said


def test_help_of_the_command_that_is_sent_is_not_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "absent.yaml", "--", "python", "--help"]) == 2
    assert "absent.yaml" in capsys.readouterr().err


CLUSTER = ClusterFile(Path("mine.yaml"), "local", "10.0.0.1", ("10.0.0.2",), "me", Path("/keys/id"))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("me@10.0.0.2: Permission denied (publickey).", "does not let me in with the key /keys/id"),
        ("ssh: connect to host 10.0.0.2 port 22: Connection timed out", "cannot be reached by SSH"),
        ("ssh: Could not resolve hostname abc: Name or service not known", "cannot be reached by SSH"),
        ("Host key verification failed.", "ssh-keygen -R 10.0.0.2"),
        ("Load key: invalid format", "cannot be used by SSH (Load key: invalid format)"),
    ],
)
def test_what_ssh_says_becomes_a_sentence_with_the_fix(error: str, sentence: str) -> None:
    assert sentence in ssh.setup_failures(CLUSTER, "10.0.0.2", error)


def test_ssh_never_waits_for_somebody_to_type() -> None:
    assert "BatchMode=yes" in ssh.ssh_words(CLUSTER)


# ---- tokens and keys -----------------------------------------------------------------------------------------------


def test_the_token_is_made_once_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    ray_commands.make_token()
    token = tmp_path / ".ray" / "auth_token"
    assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    first = token.read_text(encoding="ascii")
    assert len(first) >= 32
    token.chmod(0o644)
    ray_commands.make_token()
    assert token.read_text(encoding="ascii") == first
    assert token.stat().st_mode & 0o777 == 0o600


def test_keys_reach_the_command_alone_and_leave_the_metadata() -> None:
    metadata = {MARK + "AWS_SECRET_ACCESS_KEY": "s", "job_name": "a"}
    before = {"PATH": "/bin", "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": {}, "metadata": metadata})}
    after = with_access(before)
    assert after.pop("AWS_SECRET_ACCESS_KEY") == "s"
    job = json.loads(after.pop("RAY_JOB_CONFIG_JSON_ENV_VAR"))
    assert job == {"runtime_env": {}, "metadata": {"job_name": "a"}}
    assert after == {"PATH": "/bin"}


def test_variables_are_passed_by_name_or_value_but_keys_never() -> None:
    assert choose_environment(["A", "B=2=3"], {"A": "1"}) == {"A": "1", "B": "2=3"}
    for word in ("C", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY=x"):
        with pytest.raises(InputError, match=word.partition("=")[0]):
            choose_environment([word], {"AWS_SECRET_ACCESS_KEY": "x"})


# ---- on a machine --------------------------------------------------------------------------------------------------


def project(folder: Path, *, pins: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text('[project]\ndependencies = ["numpy>=2.0", "ray[default,train]>=2"]\n')
    (folder / "constraints.txt").write_text(pins)
    return folder


def test_a_machine_is_right_when_it_has_what_is_wanted_in_the_pinned_versions(tmp_path: Path) -> None:
    numpy, ray = (importlib.metadata.version(name) for name in ("numpy", "ray"))
    assert host.missing_packages(project(tmp_path, pins=f"# all\nnumpy=={numpy}\nray=={ray}\nnot_there==1\n")) == []
    wrong = host.missing_packages(project(tmp_path, pins=f"Numpy==1.0\nray=={ray}\n"))
    assert wrong == [f"numpy is {numpy}, not 1.0"]
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["Surely_Not.There[a]>=1"]\n')
    assert "surely-not-there is not installed" in host.missing_packages(tmp_path)


def test_this_environment_is_right_for_this_project() -> None:
    assert host.missing_packages(ROOT) == []


def test_setting_up_takes_a_machine_that_is_right_as_it_is(tmp_path: Path) -> None:
    """No pip, no network: `pip` would fail here. And the script says so where Python is missing."""
    for name in ("cluster/host.py", "cluster/setup.sh", "pyproject.toml", "constraints.txt"):
        (tmp_path / Path(name).name).write_bytes((ROOT / name).read_bytes())
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "hostname"):
        (tools / name).symlink_to(f"/bin/{name}" if Path(f"/bin/{name}").exists() else f"/usr/bin/{name}")
    script = [str(tools / "sh"), str(tmp_path / "setup.sh")]
    env = {"PATH": str(tools), "HOME": str(tmp_path)}
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has no Python 3.11 with venv" in done.stderr
    (tmp_path / "venv").symlink_to(sys.prefix)
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_head_takes_its_address_from_what_the_autoscaler_goes_by(tmp_path: Path) -> None:
    file = tmp_path / "bootstrap"
    file.write_text(json.dumps({"provider": {"head_ip": "127.0.0.1"}}), encoding="utf-8")
    assert host.head_address(file) == "127.0.0.1"
