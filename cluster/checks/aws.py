"""What is wrong with the AWS side of a file for Ray's cluster launcher, found without network and account.

Ray hands `node_config` to EC2's RunInstances as it is, and reads a few keys of `provider`; it checks neither. botocore
holds the description of RunInstances, the names of all regions and those of all instance types, so that typing
mistakes show here and not after minutes. What Ray makes by itself where a file is silent (a security group with SSH
open to the world, a role with full rights over EC2 and S3) has to be said, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from cluster.checks.findings import PLACEHOLDER, as_mapping, as_sequence, describe_finding, describe_unknown

_PROVIDER = (
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "use_external_head_ip",
    "key_pair",
    "security_group",
    "cloudwatch",
    "disable_node_updaters",
    "disable_launch_config_check",
    "foreground_node_launch",
    "worker_liveness_check",
)
_FORMS = {
    "SubnetIds": (re.compile(r"subnet-[0-9a-f]{8}([0-9a-f]{9})?"), "subnet-0123456789abcdef0"),
    "SecurityGroupIds": (re.compile(r"sg-[0-9a-f]{8}([0-9a-f]{9})?"), "sg-0123456789abcdef0"),
    "ImageId": (re.compile(r"ami-[0-9a-f]{8}([0-9a-f]{9})?|resolve:ssm:/\S+"), "ami-0123456789abcdef0"),
}
_PROFILE_NAME = re.compile(r"[\w+=,.@-]{1,128}")
_PROFILE_ARN = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:instance-profile/[\w+=,.@/-]+")


def check_aws(config: Mapping[str, Any]) -> Iterator[str]:
    """All findings about `provider` and the types of machines."""
    yield from _check_provider(as_mapping(config.get("provider")))
    nodes = as_mapping(config.get("available_node_types"))
    if not nodes:
        expected = "without types of machines Ray starts small ones of its own choice"
        yield describe_finding("available_node_types", None, expected, "name a head and at least one type of worker")
    head = config.get("head_node_type")
    for name, node in nodes.items():
        where = f"available_node_types.{name}"
        parameters = as_mapping(as_mapping(node).get("node_config"))
        yield from _launch_request(f"{where}.node_config", parameters)
        yield from _check_forms(f"{where}.node_config", parameters)
        yield from _check_closed(f"{where}.node_config", parameters)
        if name == head:
            yield from _check_head(
                where, as_mapping(as_mapping(node).get("resources")), config.get("head_start_ray_commands")
            )


@cache
def _check_session() -> Any:
    import botocore.session

    return botocore.session.Session()


def _check_provider(provider: Mapping[str, Any]) -> Iterator[str]:
    for name in provider:
        if name == "aws_credentials":
            fix = "take it out and use the usual AWS_* variables or profiles"
            yield describe_finding("provider.aws_credentials", "...", "keys do not belong into a file", fix)
        elif name not in _PROVIDER:
            yield describe_unknown("provider", name, _PROVIDER, "Ray's AWS launcher")
    region = provider.get("region")
    regions = [
        r for p in _check_session().get_available_partitions() for r in _check_session().get_available_regions("ec2", p)
    ]
    if region is None:
        yield describe_finding("provider.region", None, "Ray cannot start without one", "name one, such as us-west-2")
    elif region not in regions and PLACEHOLDER not in str(region):
        near = [name for name in regions if name[:3] == str(region)[:3]]
        fix = f"use one of {', '.join(near or regions[-4:])}"
        yield describe_finding("provider.region", region, "AWS has no region of that name", fix)
    else:
        yield from _check_zones(str(region), provider.get("availability_zone"))
    if provider.get("cache_stopped_nodes") is not False:
        expected = "stopped machines keep their disks, which cost money and hold data"
        yield describe_finding(
            "provider.cache_stopped_nodes", provider.get("cache_stopped_nodes"), expected, "write false"
        )
    for number, rule in enumerate(as_sequence(as_mapping(provider.get("security_group")).get("IpPermissions"))):
        ranges = [*as_sequence(as_mapping(rule).get("IpRanges")), *as_sequence(as_mapping(rule).get("Ipv6Ranges"))]
        for cidr in [as_mapping(entry).get("CidrIp") or as_mapping(entry).get("CidrIpv6") for entry in ranges]:
            if str(cidr).endswith("/0"):
                key = f"provider.security_group.IpPermissions[{number}]"
                yield describe_finding(
                    key, cidr, "that is the whole world", "name your own addresses, such as 203.0.113.7/32"
                )


def _check_zones(region: str, zones: object) -> Iterator[str]:
    for zone in str(zones or f"{region}a").split(","):
        if not re.fullmatch(rf"{re.escape(region)}[a-z]", zone.strip()) and PLACEHOLDER not in f"{region}{zone}":
            expected = f"zones of {region} are called {region}a, {region}b and so on"
            yield describe_finding(
                "provider.availability_zone", zone.strip(), expected, "correct the zone or the region"
            )


def _launch_request(where: str, parameters: Mapping[str, Any]) -> Iterator[str]:
    """What EC2 would refuse, from botocore's description of RunInstances."""
    from botocore.validate import ParamValidator

    shape = _check_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    # SubnetIds is Ray's own: it tries one after the other, as SubnetId. The two counts are filled in by Ray.
    request = {key: value for key, value in parameters.items() if key != "SubnetIds"}
    yield from _check_names(where, request, shape)
    report = ParamValidator().validate({**request, "MinCount": 1, "MaxCount": 1}, shape)
    for line in report.generate_report().splitlines():
        if not line.startswith("Unknown parameter"):
            yield f"{where} is refused by EC2's RunInstances, which says {line!r}: correct the value that it names."


def _check_names(where: str, value: object, shape: Any) -> Iterator[str]:
    """Keys that are no parameters, and words that are none of an enumeration's; ParamValidator passes the latter."""
    if shape.type_name == "structure" and isinstance(value, Mapping):
        for key, inner in value.items():
            if key in shape.members:
                yield from _check_names(f"{where}.{key}", inner, shape.members[key])
            else:
                yield describe_unknown(where, key, shape.members, "EC2's RunInstances")
    elif shape.type_name == "list" and isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _check_names(f"{where}[{number}]", inner, shape.member)
    elif isinstance(value, str) and value not in (getattr(shape, "enum", None) or [value]) and PLACEHOLDER not in value:
        family = [name for name in shape.enum if name.partition(".")[0] == value.partition(".")[0]]
        fix = f"use one of {', '.join((family or shape.enum)[:12])}"
        yield describe_finding(where, value, "EC2 knows no such value", fix)


def _check_forms(where: str, parameters: Mapping[str, Any]) -> Iterator[str]:
    """Identifiers that cannot be ones."""
    for key, (form, example) in _FORMS.items():
        value = parameters.get(key)
        for one in value if isinstance(value, list) else [value] if isinstance(value, str) else []:
            if not form.fullmatch(str(one)) and PLACEHOLDER not in str(one):
                yield describe_finding(
                    f"{where}.{key}", one, f"it has to look like {example}", "copy it from the AWS console"
                )
    profile = parameters.get("IamInstanceProfile")
    if profile is None:
        expected = "a head without one gets full rights over EC2 and S3 from Ray, and a worker cannot reach the bucket"
        yield describe_finding(
            f"{where}.IamInstanceProfile", None, expected, "write {Name: ...} with a profile of few rights"
        )
        return
    name, arn = as_mapping(profile).get("Name"), as_mapping(profile).get("Arn")
    good = (name is None) != (arn is None) and (
        _PROFILE_NAME.fullmatch(str(name)) if arn is None else _PROFILE_ARN.fullmatch(str(arn))
    )
    if not good and PLACEHOLDER not in str(profile):
        expected = "it has to be {Name: my-profile} or {Arn: arn:aws:iam::123456789012:instance-profile/my-profile}"
        yield describe_finding(
            f"{where}.IamInstanceProfile", profile, expected, "name the instance profile, not the role"
        )


def _check_closed(where: str, parameters: Mapping[str, Any]) -> Iterator[str]:
    """What a machine leaves open unless it is told not to."""
    if not parameters.get("SecurityGroupIds"):
        expected = "Ray makes a group that opens SSH to the whole world where none is named"
        yield describe_finding(
            f"{where}.SecurityGroupIds", parameters.get("SecurityGroupIds"), expected, "name your own group"
        )
    tokens = as_mapping(parameters.get("MetadataOptions")).get("HttpTokens")
    if tokens != "required":
        expected = "without IMDSv2 any request that a machine can be talked into reads its credentials"
        yield describe_finding(f"{where}.MetadataOptions.HttpTokens", tokens, expected, "write HttpTokens: required")
    disks = as_sequence(parameters.get("BlockDeviceMappings"))
    if not disks:
        expected = "the AMI's own disk is small and not encrypted"
        yield describe_finding(f"{where}.BlockDeviceMappings", None, expected, "name /dev/sda1 with Encrypted: true")
    for number, disk in enumerate(disks):
        encrypted = as_mapping(as_mapping(disk).get("Ebs")).get("Encrypted")
        if encrypted is not True and "Ebs" in as_mapping(disk):
            key = f"{where}.BlockDeviceMappings[{number}].Ebs.Encrypted"
            yield describe_finding(
                key, encrypted, "disks hold the token, checkpoints and data", "write Encrypted: true"
            )


def _check_head(where: str, resources: Mapping[str, Any], commands: object) -> Iterator[str]:
    """The head coordinates; a worker of a training on it would starve what the whole cluster depends on."""
    for key in ("CPU", "GPU"):
        if resources.get(key, None if key == "CPU" else 0) != 0:
            expected = "the head coordinates and trains nothing"
            yield describe_finding(f"{where}.resources.{key}", resources.get(key), expected, f"write {key}: 0")
    starts = [text for text in as_sequence(commands) if "ray start" in str(text)]
    if starts and not all(re.search(r"--num-cpus[= ]0\b", text) for text in starts):
        expected = "the head coordinates and trains nothing"
        yield describe_finding(
            "--num-cpus in head_start_ray_commands", None, expected, "add --num-cpus=0 to `ray start --head`"
        )
