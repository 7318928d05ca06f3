"""--dry-run says in about ten lines what would be done, and then all settings; it writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ali_dist.config import Config
from ali_dist.errors import InputError
from ali_dist.launchers.builtin_data import prepare_builtin_data
from ali_dist.launchers.local import run_local
from ali_dist.training import dry_run
from ali_dist.training.dry_run import describe_run
from tests.helpers.runs import tiny_config


@pytest.fixture(autouse=True)
def _no_stopwatch(monkeypatch):
    """What an update takes is measured in test_speed.py."""
    monkeypatch.setattr(dry_run, "_describe_speed", lambda config, spec: "3 images/s")


def plan_of(config: Config) -> dict[str, str]:
    """The plan's lines by their labels."""
    plan, _, _ = describe_run(config).partition("\n\n")
    return {line[:13].strip(): line[13:] for line in plan.splitlines()}


def test_the_plan_comes_first_and_the_settings_after(tmp_path):
    config = tiny_config(tmp_path)
    prepare_builtin_data(config)
    before = sorted(tmp_path.rglob("*"))
    text = describe_run(config)
    plan, settings = text.split("\n\nsettings:\n")
    assert json.loads(settings) == config.to_mapping()
    assert 8 <= len(plan.splitlines()) <= 11
    lines = plan_of(config)
    assert lines["run"] == "tiny: 192 images, in this process"
    assert "[1, 8, 8]" in lines["data"]
    assert "epochs" in lines["data"]
    assert lines["update"].startswith("8 updates of 24 images in 6 lanes, by the rule 'penalised'")
    assert lines["model"] == "digits for 1 x 8 x 8, 4 latent variables"
    assert "MB a worker" in lines["memory"]
    assert lines["results"].startswith(f"{tmp_path}/runs/tiny: report.html")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("width", [40, 80])
def test_on_a_terminal_lines_are_folded_below_their_labels(width, tmp_path):
    config = tiny_config(tmp_path, data__url="s", run__dir="r")
    plan = describe_run(config, width).partition("\n\n")[0].splitlines()
    assert sum(line[:1] != " " for line in plan) == len(plan_of(config))
    assert all(len(line) <= width or " " not in line[13:] for line in plan)
    assert " ".join(" ".join(plan).split()) == " ".join(
        " ".join(f"{k} {v}" for k, v in plan_of(config).items()).split()
    )


@pytest.mark.parametrize(
    ("workers", "words"),
    [("0", "in this process"), ("1", "by 1 Ray worker"), ("2", "by 2 Ray workers"), ("1:3", "by 1 to 3 Ray workers")],
)
def test_who_trains_is_said(workers, words, tmp_path):
    assert plan_of(tiny_config(tmp_path, scale__workers=workers))["run"].endswith(f", {words}")


def test_a_run_that_is_there_is_said(tmp_path):
    config = tiny_config(tmp_path)
    folder = Path(config.run.dir) / "tiny"
    (folder / "checkpoints" / "step-000000004").mkdir(parents=True)
    (folder / "checkpoints" / "step-000000004" / "state.json").write_text("{}")
    assert "goes on from the newest" in plan_of(config)["results"]
    (folder / "summary.json").write_text('{"status": "finished", "images": 192}')
    assert "has finished after 192 images: raise run.images" in plan_of(config)["results"]
    assert "it would go on" in plan_of(tiny_config(tmp_path, run__images=480))["results"]
    (folder / "summary.json").write_text("{")
    assert "it cannot be seen" in plan_of(config)["results"]


@pytest.mark.parametrize(
    ("url", "command", "files"),
    [
        ("data/cifar10", "prepare cifar10 PLACE --from PATH`, where PATH is", "CIFAR page"),
        ("data/celeba/", "prepare celeba PLACE --from PATH`, where PATH is", "list_attr_celeba.txt"),
        ("data/svhn", "prepare svhn PLACE --from PATH`, where PATH is", "train_32x32.mat"),
        ("data/imagenet64", "prepare imagenet64 PLACE --from PATH`, where PATH is", "wnid"),
        ("data/shapes", "prepare shapes PLACE`", ""),
        ("data/faces", "prepare folder PLACE --from PICTURES --size 64`", ""),
        ("data/folder", "prepare folder PLACE --from PICTURES --size 64`", ""),
    ],
)
def test_data_that_are_missing_are_answered_with_the_command_of_their_own_source(url, command, files, tmp_path):
    place = f"{tmp_path}/{url}".rstrip("/")
    said = plan_of(tiny_config(tmp_path, data__url=f"{tmp_path}/{url}", data__source=None))["data"]
    assert said.startswith("not there yet: ")
    assert command.replace("PLACE", place) in said
    assert files in said


def test_built_in_data_are_said_to_be_written(tmp_path):
    assert "training writes them" in plan_of(tiny_config(tmp_path))["data"]


def test_a_run_that_would_not_go_on_is_refused_as_its_start_is(tmp_path):
    config = tiny_config(tmp_path)
    prepare_builtin_data(config)
    run_local(config)
    other = {"model__latent_size": config.model.latent_size + 1, "run__images": 2 * config.run.images}
    with pytest.raises(InputError, match=r"was started with model\.latent_size") as planned:
        describe_run(tiny_config(tmp_path, **other))
    with pytest.raises(InputError) as started:
        run_local(tiny_config(tmp_path, **other))
    assert str(planned.value) == str(started.value)
    assert "it would go on" in plan_of(tiny_config(tmp_path, run__images=2 * config.run.images))["results"]
