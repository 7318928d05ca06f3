"""cluster/local.yaml as a user fills it in, and how the launcher reads it; no SSH, no Ray cluster.

Run: `make test ARGS=tests/unit/cluster/test_cluster_file.py`
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ali_dist.errors import InputError
from cluster.__main__ import main
from cluster.cluster_file import load_cluster_file
from tests.helpers.cluster_files import LOCAL, ROOT


def fill_in_local(folder: Path) -> Path:
    """A copy of local.yaml in `folder`, with a user's values."""
    document = yaml.safe_load(LOCAL.read_text(encoding="utf-8"))
    document["provider"] |= {"head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    key = folder / "key"
    key.touch()
    document["auth"] = {"ssh_user": "me", "ssh_private_key": str(key)}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_a_filled_in_file_names_machines_user_and_key(tmp_path: Path) -> None:
    cluster = load_cluster_file(fill_in_local(tmp_path))
    assert cluster.machines == ("10.0.0.1", "10.0.0.2")
    assert (cluster.user, cluster.key, cluster.is_local) == ("me", tmp_path / "key", True)


def test_ray_itself_accepts_the_file(tmp_path: Path) -> None:
    """This is Ray's own check of names and types, as `ray up` makes it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(fill_in_local(tmp_path).read_text(encoding="utf-8"))))


def test_every_value_that_users_change_is_above_the_line_and_is_refused_as_it_is() -> None:
    above, line, below = LOCAL.read_text(encoding="utf-8").partition("# ---- Nothing below has to be changed")
    assert line
    assert above.count("CHANGE-ME") == 4
    assert "CHANGE-ME" not in below
    with pytest.raises(InputError, match="auth.ssh_user, provider.head_ip, provider.worker_ips"):
        load_cluster_file(LOCAL)


def test_the_cluster_is_closed_and_carries_no_keys_and_no_history() -> None:
    document = yaml.safe_load(LOCAL.read_text(encoding="utf-8"))
    head, worker = (" ".join(document[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "RAY_AUTH_MODE=token" in head
    assert "RAY_AUTH_MODE=token" in worker
    assert "--dashboard-host=127.0.0.1" in head
    assert "0.0.0.0" not in head + worker
    mounts = document["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    assert all((ROOT / source).is_file() for source in mounts.values()), "single files, so no folder with .git in it"


@pytest.mark.parametrize(
    ("text", "fragments"),
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
    text: str | None, fragments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    assert main(["status", str(path)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(fragment in message for fragment in fragments), message
