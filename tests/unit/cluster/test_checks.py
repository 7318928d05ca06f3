"""The files for Ray's cluster launcher are valid and closed, and every mistake in them is reported in one sentence.

Each check has a case that breaks the shipped file in that way alone. Nothing here needs a network or an account.
Run: `make test ARGS=tests/unit/cluster/test_checks.py`
"""

from __future__ import annotations

import re
import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.checks import check_documents, read_documents
from cluster.checks.__main__ import main
from tests.helpers.cluster_files import (
    ALI,
    DELETED,
    FILLED_IN,
    RAYJOB,
    ROOT,
    KeyPath,
    assert_single_finding,
    check_broken,
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a check of a file opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_shipped_file_is_right_once_its_placeholders_are_filled_in() -> None:
    assert check_documents(FILLED_IN[ALI]) == []


def test_the_shipped_file_reports_each_placeholder_once() -> None:
    """Nothing starts with somebody else's values, and a placeholder that is used in three places is reported once."""
    assert_single_finding(check_documents(read_documents(ALI)), "metadata.security_groups[0]", "CHANGE-ME")


def test_every_value_that_users_change_on_aws_is_above_the_line() -> None:
    above, _, below = ALI.read_text(encoding="utf-8").partition("# ---- What can stay")
    assert "CHANGE-ME" in above
    assert "CHANGE-ME" not in below
    for value in ("us-west-2a", "g5.xlarge", "m7i.xlarge", "ali-worker", "ami-"):
        used = "\n".join(line.partition("#")[0] for line in below.splitlines())
        assert value not in used, f"{value} is repeated below the line"


def test_what_is_copied_to_aws_machines_exists_and_is_neither_git_nor_the_whole_folder() -> None:
    mounts = FILLED_IN[ALI][0]["file_mounts"]
    sources = [source for source in mounts.values() if source != "~/.ray/auth_token"]
    assert len(sources) == len(mounts) - 1
    for source in sources:
        assert (ROOT / source).exists(), source
    assert {"constraints.txt", "pyproject.toml", "ali_dist", "tuning"} <= set(sources)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} <= set(sources), "without these pip cannot build it there"


def test_the_commented_out_container_block_is_right_in_the_place_that_it_names() -> None:
    """What users may uncomment is checked like the rest. Inside the image nothing is installed."""
    block = ALI.read_text(encoding="utf-8").partition("# docker:\n")[2]
    lines = ["docker:", *(line.removeprefix("# ") for line in block.splitlines())]
    container_block = yaml.safe_load("\n".join(lines))
    assert set(container_block) == {"docker", "file_mounts", "initialization_commands", "setup_commands"}
    assert check_documents([FILLED_IN[ALI][0] | container_block]) == []


def test_the_head_finds_a_dead_machine_within_half_a_minute() -> None:
    """n failed checks of t seconds each, p seconds apart, take n (t + p). With Ray's defaults we measured 64 s."""
    start = FILLED_IN[ALI][0]["head_start_ray_commands"][-1]
    seconds = {key: int(value) for key, value in re.findall(r"RAY_health_check_(\w+)=(\d+)", start)}
    assert seconds["failure_threshold"] * (seconds["timeout_ms"] + seconds["period_ms"]) <= 30_000


def test_spot_machines_are_preferred_to_on_demand_ones() -> None:
    nodes = FILLED_IN[ALI][0]["available_node_types"]
    spot = [name for name, node in nodes.items() if "InstanceMarketOptions" in node["node_config"]]
    assert spot == ["gpu-spot"]
    assert nodes["gpu-spot"]["priority"] > nodes["gpu-on-demand"]["priority"]
    assert nodes["gpu-spot"]["resources"] == nodes["gpu-on-demand"]["resources"] == {"CPU": 4, "GPU": 1}


NODE = ("available_node_types", "gpu-spot")
SPOT = (*NODE, "node_config")
START = "ulimit -n 65536; ray start --head --num-cpus=0 --dashboard-host=127.0.0.1"
AWS_CASES: list[tuple[KeyPath, object, tuple[str, ...]]] = [
    # Ray's own validator
    (("max_wokers",), 3, ("max_wokers", "did you mean 'max_workers'?")),
    ((*NODE, "resource"), {}, ("available_node_types.gpu-spot.resource ", "did you mean 'resources'?")),
    ((*NODE, "resources"), DELETED, ("available_node_types.gpu-spot.resources is missing",)),
    ((*NODE, "min_workers"), "one", ("available_node_types.gpu-spot.min_workers is 'one'", "integer")),
    (("head_node_type",), "haed", ("head_node_type",)),
    # what Ray's validator accepts
    ((*NODE, "max_workers"), -1, ("gpu-spot.min_workers is 0", "max_workers, which is -1")),
    (("idle_timeout_minutes",), 0, ("idle_timeout_minutes is 0", "above 0")),
    (("provider", "regio"), "x", ("provider.regio ", "did you mean 'region'?")),
    (("provider", "region"), DELETED, ("provider.region is missing", "us-west-2")),
    (("provider", "region"), "us-wset-2", ("provider.region is 'us-wset-2'", "us-west-2")),
    (("provider", "availability_zone"), "us-west-2a,us-west-1b", ("availability_zone is 'us-west-1b'", "us-west-2a")),
    (("provider", "cache_stopped_nodes"), DELETED, ("provider.cache_stopped_nodes is missing", "write false")),
    (("provider", "aws_credentials"), {"aws_access_key_id": "~"}, ("provider.aws_credentials", "take it out")),
    (
        ("provider", "security_group"),
        {"GroupName": "ali", "IpPermissions": [{"FromPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]},
        ("provider.security_group.IpPermissions[0] is '0.0.0.0/0'", "whole world"),
    ),
    # EC2's parameters
    ((*SPOT, "InstanceTyp"), "g5.xlarge", ("node_config.InstanceTyp ", "did you mean 'InstanceType'?")),
    ((*SPOT, "InstanceType"), "g5.xxlarge", ("InstanceType is 'g5.xxlarge'", "g5.xlarge")),
    ((*SPOT, "MetadataOptions", "HttpToken"), "required", ("HttpToken ", "did you mean 'HttpTokens'?")),
    ((*SPOT, "InstanceMarketOptions", "MarketType"), "sport", ("MarketType is 'sport'", "spot")),
    ((*SPOT, "EbsOptimized"), "yes", ("RunInstances", "EbsOptimized")),
    ((*SPOT, "SubnetIds"), ["subnet-xyz"], ("SubnetIds is 'subnet-xyz'", "subnet-0123456789abcdef0")),
    ((*SPOT, "SecurityGroupIds"), ["default"], ("SecurityGroupIds is 'default'", "sg-0123456789abcdef0")),
    ((*SPOT, "ImageId"), "ubuntu", ("ImageId is 'ubuntu'", "ami-0123456789abcdef0")),
    ((*SPOT, "IamInstanceProfile"), {"Name": "a b"}, ("IamInstanceProfile is", "instance profile, not the role")),
    (
        (*SPOT, "IamInstanceProfile"),
        {"Arn": "arn:aws:iam::123456789012:role/ali"},
        ("IamInstanceProfile is", "instance-profile/my-profile"),
    ),
    # closed by default
    ((*SPOT, "IamInstanceProfile"), DELETED, ("gpu-spot.node_config.IamInstanceProfile is missing", "few rights")),
    ((*SPOT, "SecurityGroupIds"), DELETED, ("SecurityGroupIds is missing", "opens SSH to the whole world")),
    ((*SPOT, "MetadataOptions"), DELETED, ("MetadataOptions.HttpTokens is missing", "IMDSv2")),
    ((*SPOT, "MetadataOptions", "HttpTokens"), "optional", ("HttpTokens is 'optional'", "HttpTokens: required")),
    ((*SPOT, "BlockDeviceMappings"), DELETED, ("BlockDeviceMappings is missing", "not encrypted")),
    ((*SPOT, "BlockDeviceMappings", 0, "Ebs", "Encrypted"), False, ("Encrypted is False", "Encrypted: true")),
    (
        ("head_start_ray_commands", 1),
        f"RAY_AUTH_MODE=token {START.replace('127.0.0.1', '0.0.0.0')}",
        ("--dashboard-host in head_start_ray_commands is '0.0.0.0'", "--dashboard-host=127.0.0.1"),
    ),
    (("head_start_ray_commands", 1), START, ("RAY_AUTH_MODE in head_start_ray_commands is missing", "export")),
    (
        ("worker_start_ray_commands", 1),
        "RAY_AUTH_MODE=disabled ray start",
        ("RAY_AUTH_MODE in worker_start_ray_commands is 'disabled'",),
    ),
    (("worker_start_ray_commands",), DELETED, ("worker_start_ray_commands is missing", "without a token")),
    (("worker_start_ray_commands",), ["ray stop"], ("worker_start_ray_commands", "ray start")),
    (
        ("head_start_ray_commands", 2),
        "RAY_health_check_periode_ms=1; RAY_AUTH_MODE=token ray start --num-cpus=0",
        ("RAY_health_check_periode_ms", "did you mean 'RAY_health_check_period_ms'?"),
    ),
    (("file_mounts", "~/.ray/auth_token"), DELETED, ("file_mounts.~/.ray/auth_token is missing", "get-auth-token")),
    (("file_mounts", "~/all"), ".", ("file_mounts.~/all is '.'", ".git")),
    (("file_mounts", "~/all"), "../ali/.git", ("file_mounts.~/all", ".git")),
    (("setup_commands", 3), "pip install -U ray", ("setup_commands is 'pip install -U ray'", "--constraint")),
    # the head
    (("available_node_types", "head", "resources"), {}, ("head.resources.CPU is missing", "write CPU: 0")),
    (("available_node_types", "head", "resources", "GPU"), 1, ("head.resources.GPU is 1", "trains nothing")),
    (
        ("head_start_ray_commands", 1),
        "export RAY_AUTH_MODE=token; ray start --head",
        ("--num-cpus in head_start_ray_commands is missing", "--num-cpus=0"),
    ),
    # secrets
    (("setup_commands", 3), "export AWS_SECRET_ACCESS_KEY=abcdefgh", ("setup_commands[3]", "a secret as a variable")),
    (("metadata", "key"), "AKIA" + "ABCDEFGHIJKLMNOP", ("metadata.key", "an AWS access key")),
    (("metadata", "key"), "-----BEGIN OPENSSH PRIVATE KEY-----", ("metadata.key", "a private key")),
    (("metadata", "auth_token"), "0123456789abcdef", ("metadata.auth_token", "a secret")),
]


@pytest.mark.parametrize(("path", "value", "fragments"), AWS_CASES, ids=lambda value: "")
def test_a_mistake_in_an_aws_file_is_one_finding(path: KeyPath, value: object, fragments: tuple[str, ...]) -> None:
    assert_single_finding(check_broken(ALI, path, value), *fragments)


def test_a_secret_is_not_repeated_by_the_sentence_about_it() -> None:
    findings = check_broken(ALI, ("metadata", "password"), "correct horse battery staple")
    assert_single_finding(findings, "metadata.password")
    assert "battery" not in str(findings[0])


LOCAL = {
    "cluster_name": "ali",
    "provider": {"type": "local", "head_ip": "192.0.2.1", "worker_ips": ["192.0.2.2"]},
    "auth": {"ssh_user": "me", "ssh_private_key": "~/.ssh/id_ed25519"},
    "file_mounts": {"~/.ray/auth_token": "~/.ray/auth_token"},
    "head_start_ray_commands": ["export RAY_AUTH_MODE=token; ray start --head --dashboard-host=127.0.0.1"],
    "worker_start_ray_commands": ["export RAY_AUTH_MODE=token; ray start --address=$RAY_HEAD_IP:6379"],
}


def test_a_file_for_own_machines_passes_the_same_checks_without_those_of_aws() -> None:
    assert check_documents([LOCAL]) == []
    assert_single_finding(check_documents([LOCAL | {"file_mounts": {}}]), "file_mounts.~/.ray/auth_token is missing")
    assert_single_finding(check_documents([LOCAL | {"provider": {"type": "gcp"}}]), "provider.type is 'gcp'", "aws")


def list_paths(document: Any) -> list[KeyPath]:
    """Paths of all values in a document, mappings and lists included."""
    paths: list[KeyPath] = []
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        paths.append((key,))
        if isinstance(value, dict | list):
            paths += [(key, *rest) for rest in list_paths(value)]
    return paths


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_any_value_anywhere_in_a_file_is_answered_with_sentences(data: st.DataObject) -> None:
    """A check that crashes reports nothing: any kind of value, anywhere, leads to sentences or to none."""
    file = data.draw(st.sampled_from([ALI, RAYJOB]))
    path = data.draw(st.sampled_from(list_paths(FILLED_IN[file][-1])))
    junk = data.draw(st.sampled_from([DELETED, None, 0, -1, 1.5, True, "", "x", [], [None], {}, {"x": 1}, [[]]]))
    for sentence in map(str, check_broken(file, path, junk)):
        assert "\n" not in sentence
        assert sentence.endswith((".", "?"))


def test_the_command_prints_a_sentence_for_each_finding_and_exits_with_2_if_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump(FILLED_IN[ALI][0]), encoding="utf-8")
    assert main([str(good)]) == 0
    assert capsys.readouterr() == ("", "")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [", encoding="utf-8")
    assert main([str(good), str(bad), str(tmp_path / "none.yaml"), str(ALI)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    first, second, third = err.splitlines()
    assert "cannot be read as YAML" in first
    assert "cannot be read" in second
    assert third.startswith(f"{ALI}: metadata.security_groups[0]")


@pytest.mark.parametrize("text", ["", "[]", "text", "a: 1\n---\nb: 2", "{}"])
def test_a_file_that_describes_no_cluster_is_one_sentence(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert main([str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
