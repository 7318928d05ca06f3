"""Checks of the AWS side of a file for Ray's cluster launcher, without a network and an account.

Ray passes `node_config` on to EC2's RunInstances as it is, and reads a few keys of `provider`; it checks neither.
botocore contains the description of RunInstances, the names of all regions and those of all instance types, so that
typing mistakes are found here and not after minutes. What Ray creates by itself where a file is silent (a security
group with SSH open to the world, a role with full rights over EC2 and S3) has to be reported, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from cluster.checks.findings import PLACEHOLDER, Finding, as_list, as_mapping

_PROVIDER_KEYS = (
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
# What identifiers look like, with an example of each.
_IDENTIFIERS = {
    "SubnetIds": (re.compile(r"subnet-[0-9a-f]{8}([0-9a-f]{9})?"), "subnet-0123456789abcdef0"),
    "SecurityGroupIds": (re.compile(r"sg-[0-9a-f]{8}([0-9a-f]{9})?"), "sg-0123456789abcdef0"),
    "ImageId": (re.compile(r"ami-[0-9a-f]{8}([0-9a-f]{9})?|resolve:ssm:/\S+"), "ami-0123456789abcdef0"),
}
_PROFILE_NAME = re.compile(r"[\w+=,.@-]{1,128}")
_PROFILE_ARN = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:instance-profile/[\w+=,.@/-]+")
_MOST_CHOICES = 12  # allowed values that a sentence lists


def check_aws(document: Mapping[str, Any]) -> Iterator[Finding]:
    """All findings about `provider`, the types of machines and the head."""
    provider = as_mapping(document.get("provider"))
    yield from _check_provider_keys(provider)
    yield from _check_region(provider)
    yield from _check_stopped_nodes(provider)
    yield from _check_inbound_rules(provider)
    node_types = as_mapping(document.get("available_node_types"))
    if not node_types:
        expected = "without types of machines Ray starts small ones of its own choice"
        fix = "name a head and at least one type of worker"
        yield Finding.wrong_value("available_node_types", None, expected, fix)
    for name, node_type in node_types.items():
        key = f"available_node_types.{name}.node_config"
        parameters = as_mapping(as_mapping(node_type).get("node_config"))
        yield from _check_launch_request(key, parameters)
        yield from _check_identifiers(key, parameters)
        yield from _check_instance_profile(key, parameters)
        yield from _check_security(key, parameters)
    yield from _check_head(document)


@cache
def _load_botocore_session() -> Any:
    """botocore's description of AWS, which is slow to load."""
    import botocore.session

    return botocore.session.Session()


def _check_provider_keys(provider: Mapping[str, Any]) -> Iterator[Finding]:
    for name in provider:
        if name == "aws_credentials":
            fix = "take it out and use the usual AWS_* variables or profiles"
            yield Finding.wrong_value("provider.aws_credentials", "...", "keys do not belong in a file", fix)
        elif name not in _PROVIDER_KEYS:
            yield Finding.unknown_key("provider", name, _PROVIDER_KEYS, "Ray's AWS launcher")


def _check_region(provider: Mapping[str, Any]) -> Iterator[Finding]:
    region = provider.get("region")
    if region is None:
        fix = "name one, such as us-west-2"
        yield Finding.wrong_value("provider.region", None, "Ray cannot start without one", fix)
        return
    session = _load_botocore_session()
    regions = [
        name for part in session.get_available_partitions() for name in session.get_available_regions("ec2", part)
    ]
    if region in regions or PLACEHOLDER in str(region):
        yield from _check_zones(str(region), provider.get("availability_zone"))
        return
    similar = [name for name in regions if name[:3] == str(region)[:3]]
    fix = f"use one of {', '.join(similar or regions[-4:])}"
    yield Finding.wrong_value("provider.region", region, "AWS has no region of that name", fix)


def _check_zones(region: str, zones: object) -> Iterator[Finding]:
    """The zones, which are separated by commas and by default the region's first."""
    for zone in str(zones or f"{region}a").split(","):
        if not re.fullmatch(rf"{re.escape(region)}[a-z]", zone.strip()) and PLACEHOLDER not in f"{region}{zone}":
            expected = f"zones of {region} are called {region}a, {region}b and so on"
            fix = "correct the zone or the region"
            yield Finding.wrong_value("provider.availability_zone", zone.strip(), expected, fix)


def _check_stopped_nodes(provider: Mapping[str, Any]) -> Iterator[Finding]:
    value = provider.get("cache_stopped_nodes")
    if value is not False:
        expected = "stopped machines keep their disks, which cost money and hold data"
        yield Finding.wrong_value("provider.cache_stopped_nodes", value, expected, "write false")


def _check_inbound_rules(provider: Mapping[str, Any]) -> Iterator[Finding]:
    """The rules of a security group that Ray is to make."""
    for number, rule in enumerate(as_list(as_mapping(provider.get("security_group")).get("IpPermissions"))):
        ranges = [*as_list(as_mapping(rule).get("IpRanges")), *as_list(as_mapping(rule).get("Ipv6Ranges"))]
        for entry in map(as_mapping, ranges):
            addresses = entry.get("CidrIp") or entry.get("CidrIpv6")
            if str(addresses).endswith("/0"):
                key = f"provider.security_group.IpPermissions[{number}]"
                fix = "name your own addresses, such as 203.0.113.7/32"
                yield Finding.wrong_value(key, addresses, "that is the whole world", fix)


def _check_launch_request(key: str, parameters: Mapping[str, Any]) -> Iterator[Finding]:
    """What EC2 would refuse, according to botocore's description of RunInstances."""
    from botocore.validate import ParamValidator

    shape = _load_botocore_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    # SubnetIds is Ray's own: it tries one after the other, as SubnetId. Ray also fills in the two counts.
    request = {name: value for name, value in parameters.items() if name != "SubnetIds"}
    yield from _check_against_shape(key, request, shape)
    report = ParamValidator().validate({**request, "MinCount": 1, "MaxCount": 1}, shape)
    for line in report.generate_report().splitlines():
        if not line.startswith("Unknown parameter"):
            problem = f"is refused by EC2's RunInstances, which says {line!r}"
            yield Finding(key, problem, "correct the value that it names")


def _check_against_shape(key: str, value: object, shape: Any) -> Iterator[Finding]:
    """Keys that are not parameters, and values outside an enumeration, which botocore's ParamValidator accepts."""
    if shape.type_name == "structure" and isinstance(value, Mapping):
        for name, inner in value.items():
            if name in shape.members:
                yield from _check_against_shape(f"{key}.{name}", inner, shape.members[name])
            else:
                yield Finding.unknown_key(key, name, shape.members, "EC2's RunInstances")
    elif shape.type_name == "list" and isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _check_against_shape(f"{key}[{number}]", inner, shape.member)
    elif isinstance(value, str) and value not in (getattr(shape, "enum", None) or [value]) and PLACEHOLDER not in value:
        family = [name for name in shape.enum if name.partition(".")[0] == value.partition(".")[0]]
        fix = f"use one of {', '.join((family or shape.enum)[:_MOST_CHOICES])}"
        yield Finding.wrong_value(key, value, "EC2 knows no such value", fix)


def _check_identifiers(key: str, parameters: Mapping[str, Any]) -> Iterator[Finding]:
    """Identifiers that do not look like what AWS would have given them."""
    for name, (pattern, example) in _IDENTIFIERS.items():
        value = parameters.get(name)
        identifiers = value if isinstance(value, list) else [value] if isinstance(value, str) else []
        for identifier in identifiers:
            if not pattern.fullmatch(str(identifier)) and PLACEHOLDER not in str(identifier):
                expected = f"it has to look like {example}"
                yield Finding.wrong_value(f"{key}.{name}", identifier, expected, "copy it from the AWS console")


def _check_instance_profile(key: str, parameters: Mapping[str, Any]) -> Iterator[Finding]:
    key = f"{key}.IamInstanceProfile"
    profile = parameters.get("IamInstanceProfile")
    if profile is None:
        expected = "without one Ray gives a head full rights over EC2 and S3, and a worker cannot reach the bucket"
        yield Finding.wrong_value(key, None, expected, "write {Name: ...} with a profile of few rights")
        return
    name = as_mapping(profile).get("Name")
    arn = as_mapping(profile).get("Arn")
    is_valid = (name is None) != (arn is None) and (
        _PROFILE_NAME.fullmatch(str(name)) if arn is None else _PROFILE_ARN.fullmatch(str(arn))
    )
    if not is_valid and PLACEHOLDER not in str(profile):
        expected = "it has to be {Name: my-profile} or {Arn: arn:aws:iam::123456789012:instance-profile/my-profile}"
        yield Finding.wrong_value(key, profile, expected, "name the instance profile, not the role")


def _check_security(key: str, parameters: Mapping[str, Any]) -> Iterator[Finding]:
    """What a machine leaves open or unencrypted unless the file says otherwise."""
    groups = parameters.get("SecurityGroupIds")
    if not groups:
        expected = "where none is named, Ray makes a group that opens SSH to the whole world"
        yield Finding.wrong_value(f"{key}.SecurityGroupIds", groups, expected, "name your own group")
    tokens = as_mapping(parameters.get("MetadataOptions")).get("HttpTokens")
    if tokens != "required":
        expected = "without IMDSv2 any request that a machine can be made to send reads its credentials"
        yield Finding.wrong_value(f"{key}.MetadataOptions.HttpTokens", tokens, expected, "write HttpTokens: required")
    disks = as_list(parameters.get("BlockDeviceMappings"))
    if not disks:
        expected = "the AMI's own disk is small and not encrypted"
        yield Finding.wrong_value(f"{key}.BlockDeviceMappings", None, expected, "name /dev/sda1 with Encrypted: true")
    for number, disk in enumerate(map(as_mapping, disks)):
        encrypted = as_mapping(disk.get("Ebs")).get("Encrypted")
        if encrypted is not True and "Ebs" in disk:
            disk_key = f"{key}.BlockDeviceMappings[{number}].Ebs.Encrypted"
            expected = "disks hold the token, checkpoints and data"
            yield Finding.wrong_value(disk_key, encrypted, expected, "write Encrypted: true")


def _check_head(document: Mapping[str, Any]) -> Iterator[Finding]:
    """The head coordinates; a worker that trains there would starve what the whole cluster depends on."""
    expected = "the head coordinates and trains nothing"
    name = str(document.get("head_node_type"))
    node_types = as_mapping(document.get("available_node_types"))
    if name not in node_types:  # Ray's own validator reports this
        return
    resources = as_mapping(as_mapping(node_types[name]).get("resources"))
    for resource in ("CPU", "GPU"):
        amount = resources.get(resource, None if resource == "CPU" else 0)
        if amount != 0:
            key = f"available_node_types.{name}.resources.{resource}"
            yield Finding.wrong_value(key, amount, expected, f"write {resource}: 0")
    starts = [str(text) for text in as_list(document.get("head_start_ray_commands")) if "ray start" in str(text)]
    if not all(re.search(r"--num-cpus[= ]0\b", text) for text in starts):
        key = "--num-cpus in head_start_ray_commands"
        yield Finding.wrong_value(key, None, expected, "add --num-cpus=0 to `ray start --head`")
