"""What is wrong with a file for Ray's cluster launcher, `ray up`, whatever provides its machines.

Ray's own validator comes first. It lets pass what it does not know the meaning of: commands that open the cluster to
the network, misspelt variables, whole working folders as file mounts. Those are the rules here.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.checks.findings import as_mapping, as_sequence, describe_finding, describe_unknown

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEALTH_CHECKS = tuple(
    f"RAY_health_check_{name}" for name in ("initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold")
)
_STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


def check_ray(config: Mapping[str, Any]) -> Iterator[str]:
    """All findings that do not depend on the provider."""
    yield from _make_validator(config)
    yield from _check_numbers(config)
    for key in _STARTS:
        yield from _check_start_commands(key, config.get(key))
    yield from _check_mounts(config)
    yield from _check_pins(config)


def _make_validator(config: Mapping[str, Any]) -> Iterator[str]:
    """Ray's own opinion. It fills in defaults first, as `ray up` does, and knows the schema of all keys."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    log = logging.getLogger("ray.autoscaler")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(dict(config))))
    except ValidationError as error:
        yield from _schema_findings(error)
    except Exception as error:  # Ray raises whatever its code trips on: KeyError, AttributeError, ClickException
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        yield f"The file is refused by Ray's own validator, which says {text!r}: correct what it names."
    finally:
        log.setLevel(level)


def _schema_findings(error: Any) -> Iterator[str]:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        for name in set(error.instance) - set(known):
            yield describe_unknown(where, name, known, "Ray")
    elif error.validator == "required":
        for name in set(error.validator_value) - set(error.instance):
            yield describe_finding(f"{where}.{name}".lstrip("."), None, "Ray needs it", "add it")
    else:
        expected = f"Ray expects {error.validator} {error.validator_value}"
        yield describe_finding(where or "The file", error.instance, expected, "write a value of that kind")


def _check_numbers(config: Mapping[str, Any]) -> Iterator[str]:
    idle = config.get("idle_timeout_minutes", 5)
    if not isinstance(idle, int | float) or idle <= 0:
        expected = "machines without work are to go after some minutes"
        yield describe_finding("idle_timeout_minutes", idle, expected, "write a number above 0, such as 10")
    for name, node in as_mapping(config.get("available_node_types")).items():
        low, high = (
            as_mapping(node).get("min_workers", 0),
            as_mapping(node).get("max_workers", config.get("max_workers", 2)),
        )
        if isinstance(low, int) and isinstance(high, int) and low > high:
            expected = f"it may not be above max_workers, which is {high}"
            yield describe_finding(
                f"available_node_types.{name}.min_workers", low, expected, "lower it or raise max_workers"
            )


def _check_start_commands(key: str, commands: object) -> Iterator[str]:
    """What is wrong with the commands that start Ray on one kind of machine."""
    if commands is None:
        yield describe_finding(
            key, None, "Ray's defaults start without a token, and the dashboard on all addresses", "write it"
        )
        return
    starts = [text for text in as_sequence(commands) if isinstance(text, str) and re.search(r"\bray start\b", text)]
    if not starts:
        yield describe_finding(key, commands, "one of the commands has to be `ray start ...`", "add it")
    for text in starts:
        if not re.search(r"\bRAY_AUTH_MODE=token\b", text):
            mode = re.search(r"\bRAY_AUTH_MODE=\S*", text)
            expected = "Ray lets in everybody who reaches its ports unless it is told to ask for a token"
            fix = "put `export RAY_AUTH_MODE=token;` before `ray start`, in the same command"
            yield describe_finding(f"RAY_AUTH_MODE in {key}", mode and mode[0].partition("=")[2], expected, fix)
        for option in re.finditer(r"--dashboard-host[= ]([^\s;]+)", text):
            if option[1] not in _LOOPBACK:
                expected = "the dashboard starts jobs and is for the head's loopback alone"
                fix = "write --dashboard-host=127.0.0.1 and reach it with `ray dashboard` through SSH"
                yield describe_finding(f"--dashboard-host in {key}", option[1], expected, fix)
        for name in re.findall(r"\bRAY_health_check_\w+", text):
            if name not in _HEALTH_CHECKS:
                yield describe_unknown("", name, _HEALTH_CHECKS, "Ray")


def _check_mounts(config: Mapping[str, Any]) -> Iterator[str]:
    mounts = as_mapping(config.get("file_mounts"))
    if not any(str(target).endswith("/.ray/auth_token") for target in mounts):
        expected = "every machine needs the token that opens the cluster"
        fix = "add `~/.ray/auth_token: ~/.ray/auth_token` (`ray get-auth-token --generate` makes the file)"
        yield describe_finding("file_mounts.~/.ray/auth_token", None, expected, fix)
    for target, source in mounts.items():
        path = posixpath.normpath(str(source).replace("\\", "/"))
        if path in (".", "..", "/", "~") or "/.git/" in f"/{path}/":
            expected = "Ray reads and copies all of a folder, with .git, environments and data"
            fix = "mount the files and folders that are needed, one by one"
            yield describe_finding(f"file_mounts.{target}", source, expected, fix)


def _check_pins(config: Mapping[str, Any]) -> Iterator[str]:
    """Installations that constraints.txt does not hold give each machine what is newest on its day."""
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        for text in as_sequence(config.get(key)):
            if re.search(r"\bpip3? install\b", str(text)) and not re.search(r"(^|\s)(-c|--constraint)\b", str(text)):
                expected = "machines have to run the same, tested versions"
                yield describe_finding(f"{key}", text, expected, "add --constraint constraints.txt to pip install")
