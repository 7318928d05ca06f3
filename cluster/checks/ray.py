"""Checks of a file for Ray's cluster launcher, `ray up`, whatever provides its machines.

Ray's own validator comes first. It accepts what it does not understand: commands that open the cluster to the network,
misspelt environment variables, whole working folders as file mounts. The other checks are for those.
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

from cluster.checks.findings import Finding, as_list, as_mapping

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEALTH_CHECKS = tuple(
    f"RAY_health_check_{name}" for name in ("initial_delay_ms", "period_ms", "timeout_ms", "failure_threshold")
)
_START_KEYS = ("head_start_ray_commands", "worker_start_ray_commands")
_SETUP_KEYS = ("setup_commands", "head_setup_commands", "worker_setup_commands")


def check_ray(document: Mapping[str, Any]) -> Iterator[Finding]:
    """All findings that do not depend on the provider of the machines."""
    yield from _check_with_rays_validator(document)
    yield from _check_idle_timeout(document)
    yield from _check_worker_counts(document)
    for key in _START_KEYS:
        yield from _check_start_commands(key, document.get(key))
    yield from _check_mounts(document)
    yield from _check_pins(document)


def _check_with_rays_validator(document: Mapping[str, Any]) -> Iterator[Finding]:
    """What `ray up` itself would refuse. It fills in defaults first, and knows the schema of all keys."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    logger = logging.getLogger("ray.autoscaler")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(dict(document))))
    except ValidationError as error:
        yield from _explain_schema_error(error)
    except Exception as error:  # Ray raises what its code stumbles over: KeyError, AttributeError, ClickException
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        yield Finding("The file", f"is refused by Ray's own validator, which says {text!r}", "correct what it names")
    finally:
        logger.setLevel(level)


def _explain_schema_error(error: Any) -> Iterator[Finding]:
    """The findings behind a `jsonschema.ValidationError`."""
    key = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        for name in sorted(set(error.instance) - set(known), key=str):
            yield Finding.unknown_key(key, name, known, "Ray")
    elif error.validator == "required":
        for name in sorted(set(error.validator_value) - set(error.instance)):
            yield Finding.wrong_value(f"{key}.{name}".lstrip("."), None, "Ray needs it", "add it")
    else:
        expected = f"Ray expects {error.validator} {error.validator_value}"
        yield Finding.wrong_value(key or "The file", error.instance, expected, "write a value of that kind")


def _check_idle_timeout(document: Mapping[str, Any]) -> Iterator[Finding]:
    minutes = document.get("idle_timeout_minutes", 5)
    if not isinstance(minutes, int | float) or minutes <= 0:
        expected = "machines without work have to end after some minutes"
        yield Finding.wrong_value("idle_timeout_minutes", minutes, expected, "write a number above 0, such as 10")


def _check_worker_counts(document: Mapping[str, Any]) -> Iterator[Finding]:
    for name, node_type in as_mapping(document.get("available_node_types")).items():
        least = as_mapping(node_type).get("min_workers", 0)
        most = as_mapping(node_type).get("max_workers", document.get("max_workers", 2))
        if isinstance(least, int) and isinstance(most, int) and least > most:
            key = f"available_node_types.{name}.min_workers"
            expected = f"it may not be above max_workers, which is {most}"
            yield Finding.wrong_value(key, least, expected, "lower it or raise max_workers")


def _check_start_commands(key: str, commands: object) -> Iterator[Finding]:
    """The commands that start Ray on the head or on a worker, `commands`, which the file has at `key`."""
    if commands is None:
        expected = "Ray's default commands start it without a token, with the dashboard on all addresses"
        yield Finding.wrong_value(key, None, expected, "write the commands, as in cluster/ali.yaml")
        return
    starts = [text for text in as_list(commands) if isinstance(text, str) and re.search(r"\bray start\b", text)]
    if not starts:
        yield Finding.wrong_value(key, commands, "one of the commands has to be `ray start ...`", "add it")
    for text in starts:
        if not re.search(r"\bRAY_AUTH_MODE=token\b", text):
            mode = re.search(r"\bRAY_AUTH_MODE=\S*", text)
            expected = "Ray lets in everybody who reaches its ports unless it is told to ask for a token"
            fix = "put `export RAY_AUTH_MODE=token;` before `ray start`, in the same command"
            yield Finding.wrong_value(f"RAY_AUTH_MODE in {key}", mode and mode[0].partition("=")[2], expected, fix)
        for option in re.finditer(r"--dashboard-host[= ]([^\s;]+)", text):
            if option[1] not in _LOOPBACK:
                expected = "the dashboard can start jobs, so it must listen on the head's loopback alone"
                fix = "write --dashboard-host=127.0.0.1 and reach it with `ray dashboard` through SSH"
                yield Finding.wrong_value(f"--dashboard-host in {key}", option[1], expected, fix)
        for name in re.findall(r"\bRAY_health_check_\w+", text):
            if name not in _HEALTH_CHECKS:
                yield Finding.unknown_key("", name, _HEALTH_CHECKS, "Ray")


def _check_mounts(document: Mapping[str, Any]) -> Iterator[Finding]:
    mounts = as_mapping(document.get("file_mounts"))
    if not any(str(target).endswith("/.ray/auth_token") for target in mounts):
        expected = "every machine needs the token that opens the cluster"
        fix = "add `~/.ray/auth_token: ~/.ray/auth_token` (`ray get-auth-token --generate` makes the file)"
        yield Finding.wrong_value("file_mounts.~/.ray/auth_token", None, expected, fix)
    for target, source in mounts.items():
        path = posixpath.normpath(str(source).replace("\\", "/"))
        if path in (".", "..", "/", "~") or "/.git/" in f"/{path}/":
            expected = "Ray copies everything in a folder, including .git, environments and data"
            fix = "mount the files and folders that are needed, one by one"
            yield Finding.wrong_value(f"file_mounts.{target}", source, expected, fix)


def _check_pins(document: Mapping[str, Any]) -> Iterator[Finding]:
    """Installations without constraints.txt, which give each machine the newest versions of its day."""
    for key in _SETUP_KEYS:
        for text in as_list(document.get(key)):
            if re.search(r"\bpip3? install\b", str(text)) and not re.search(r"(^|\s)(-c|--constraint)\b", str(text)):
                expected = "all machines have to run the same, tested versions"
                yield Finding.wrong_value(key, text, expected, "add --constraint constraints.txt to pip install")
