"""The public surface is frozen: options, presets, exit codes, files, checkpoint keys and metric names.

What users, scripts and old runs rely on is listed in `public_surface.json`. A change of it must be deliberate:

    python -m tests.unit.project.test_public_surface    # writes the surface as it is now into the JSON file

and a line in CHANGELOG.md.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from safetensors import safe_open

from ali_dist.config.loading import preset_names, setting_infos
from ali_dist.data.preparation.tar_sources import TAR_SOURCES
from ali_dist.data.sources.registry import SOURCES
from ali_dist.errors import InputError, Stopped, StorageError, TrainingError, exit_code
from ali_dist.evaluation.catalog import metric_keys
from ali_dist.launchers.local import run_local
from tests.helpers.runs import tiny_config
from tuning.score import SCORE_METRICS
from tuning.spaces import space_names

FROZEN = Path(__file__).with_name("public_surface.json")
ACCEPT = "python -m tests.unit.project.test_public_surface"
COMMANDS = (
    "ali_dist.train",
    "ali_dist.prepare",
    "ali_dist.evaluate",
    "ali_dist.generate",
    "ali_dist.encode",
    "ali_dist.export",
    "ali_dist.explore",
    "ali_dist.list_runs",
    "ali_dist.fetch",
    "ali_dist.report.__main__",
    "tuning.sweep",
)
Surface = dict[str, Any]


def list_settings() -> Surface:
    """Every setting with the values it may have and its default."""
    return {key: {"values": info.allowed(), "default": info.default} for key, info in setting_infos().items()}


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that a command makes, taken from its --help."""
    parsers: list[argparse.ArgumentParser] = []
    command = importlib.import_module(module).main
    with (
        mock.patch.object(argparse.ArgumentParser, "print_help", lambda parser, file=None: parsers.append(parser)),
        contextlib.suppress(SystemExit),
    ):
        command(["--help"])
    assert parsers, f"{module} did not show the help of an argparse parser"
    return parsers[0]


def list_options() -> Surface:
    """The options of every command, with what they take, their choices and their defaults."""
    surface: Surface = {}
    for module in COMMANDS:
        options = surface[module.removesuffix(".__main__")] = {}
        for action in parser_of(module)._actions:
            name = action.option_strings[-1] if action.option_strings else str(action.metavar)
            default = action.default
            options[name] = {
                "takes": "nothing" if action.nargs == 0 else "a value",
                "choices": sorted(map(str, action.choices)) if action.choices else None,
                "required": action.required,
                "default": default if isinstance(default, int | float | str | None) else str(default),
            }
    return surface


def list_cluster_words() -> Surface:
    """The commands and the options of the launcher, from its help."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        importlib.import_module("cluster.__main__").main(["--help"])
    commands = re.findall(r"^  ([a-z]+) FILE", shown.getvalue(), re.MULTILINE)
    return {"commands": sorted(commands), "options": sorted(set(re.findall(r"--[a-z]+(?![.\w])", shown.getvalue())))}


def list_exit_codes() -> Surface:
    """What each way to end a command becomes."""
    ends: dict[str, Callable[[], int | None]] = {"done": lambda: None}
    for error in (InputError(""), Stopped(""), TrainingError(""), StorageError(""), KeyboardInterrupt()):
        ends[type(error).__name__] = mock.Mock(side_effect=error)
    ends["disk full"] = mock.Mock(side_effect=OSError(errno.ENOSPC, "full", "file"))
    with contextlib.redirect_stderr(io.StringIO()):
        return {name: exit_code("command", action) for name, action in ends.items()}


def list_names() -> Surface:
    """Names that stand in files and on command lines."""
    return {
        "presets": preset_names(),
        "sources": sorted([*SOURCES, *TAR_SOURCES]),
        "spaces": sorted(space_names()),
        "metrics": sorted(metric_keys()),
        "sweep metrics": sorted(SCORE_METRICS),
    }


def list_run_files(folder: Path) -> Surface:
    """The files of a run and of its data, their keys, and the tensors of its checkpoints.

    Args:
        folder: An empty folder, which receives a run of 8 updates.
    """
    config = tiny_config(folder)
    run_local(config)
    run = folder / "runs" / "tiny"
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    index = json.loads((folder / "data" / "train" / "index.json").read_text(encoding="utf-8"))
    return {
        "run folder": sorted({_without_numbers(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}),
        "checkpoint files": sorted(path.name for path in checkpoint.iterdir()),
        "state.json": _keys_of(checkpoint / "state.json"),
        "summary.json": _keys_of(run / "summary.json"),
        "train record of metrics.jsonl": sorted(records[0]),
        "data folder": sorted(
            {_without_numbers(path.relative_to(folder / "data")) for path in (folder / "data").rglob("*.*")}
        ),
        "index.json": sorted(index),
        "shard of index.json": sorted(index["shards"][0]),
        "model.safetensors": _tensor_names(checkpoint / "model.safetensors"),
        "ema.safetensors": _tensor_names(checkpoint / "ema.safetensors"),
        "optimizer.safetensors": _tensor_names(checkpoint / "optimizer.safetensors"),
    }


def _without_numbers(path: Path) -> str:
    """A path with N for every number, and without the rest of TensorBoard's file names."""
    return re.sub(r"\d+", "N", re.sub(r"tfevents.*", "tfevents", path.as_posix()))


def _keys_of(path: Path) -> list[str]:
    return sorted(json.loads(path.read_text(encoding="utf-8")))


def _tensor_names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return sorted(file.keys())


PARTS: dict[str, Callable[[], Surface]] = {
    "settings": list_settings,
    "options": list_options,
    "cluster": list_cluster_words,
    "exit codes": list_exit_codes,
    "names": list_names,
}


def flatten(surface: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every name and every value of a surface by its path, so that two of them can be compared."""
    if isinstance(surface, dict) and surface:
        for key, value in surface.items():
            yield from flatten(value, f"{path} > {key}" if path else key)
    elif isinstance(surface, list):
        for name in surface:
            yield f"{path} > {name}", True
    else:
        yield path, surface


def describe_changes(frozen: Surface, now: Surface) -> str:
    """One sentence that says what differs; empty if nothing does."""
    old = dict(flatten(frozen))
    new = dict(flatten(now))
    changes = [f"{path} is gone" for path in old if path not in new]
    changes += [f"{path} is new" for path in new if path not in old]
    both = [path for path in old if path in new and old[path] != new[path]]
    changes += [f"{path} was {old[path]!r} and is {new[path]!r}" for path in both]
    if not changes:
        return ""
    return (
        f"The public surface has changed ({'; '.join(changes)}): if that is deliberate, run `{ACCEPT}` and add a line "
        "to CHANGELOG.md, else undo it."
    )


@pytest.fixture(scope="module")
def frozen_surface() -> Surface:
    surface: Surface = json.loads(FROZEN.read_text(encoding="utf-8"))
    return surface


@pytest.mark.parametrize("part", PARTS)
def test_names_and_options_are_as_they_were(part: str, frozen_surface: Surface) -> None:
    changes = describe_changes({part: frozen_surface[part]}, {part: PARTS[part]()})
    assert not changes, changes


def test_files_and_their_keys_are_as_they_were(tmp_path: Path, frozen_surface: Surface) -> None:
    """An old run folder can be read, and a script that reads one goes on working."""
    changes = describe_changes({"files": frozen_surface["files"]}, {"files": list_run_files(tmp_path)})
    assert not changes, changes


def test_a_change_is_one_sentence_with_its_remedy() -> None:
    """Whoever meets the failure knows what changed and what to do about it."""
    message = describe_changes(
        {"names": {"presets": ["digits", "svhn"]}, "codes": {"done": 0}},
        {"names": {"presets": ["digits", "faces"]}, "codes": {"done": 1}},
    )
    assert "presets > svhn is gone; " in message
    assert "presets > faces is new; " in message
    assert "codes > done was 0 and is 1)" in message
    assert ACCEPT in message
    assert "CHANGELOG" in message
    assert describe_changes({"a": [1]}, {"a": [1]}) == ""


def write_surface() -> None:
    """Accept the surface as it is now."""
    surface = {part: list_part() for part, list_part in PARTS.items()}
    with tempfile.TemporaryDirectory() as folder:
        surface["files"] = list_run_files(Path(folder))
    FROZEN.write_text(json.dumps(surface, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_surface()
