"""Every example of docs/extending.md is executed end to end, and every table it adds a row to is restored."""

from __future__ import annotations

import csv
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ali_dist import evaluate, prepare
from ali_dist.config import Config, ObjectiveConfig
from ali_dist.data.preparation.builtin import ensure_prepared
from ali_dist.data.shards.index import load_index
from ali_dist.data.shards.reader import load_arrays
from ali_dist.data.sources.registry import SOURCES
from ali_dist.errors import InputError, Stopped
from ali_dist.evaluation import evaluators
from ali_dist.evaluation.catalog import METRICS
from ali_dist.inference.evaluations import EVALUATIONS
from ali_dist.launchers.local import run_local
from ali_dist.model.architectures import ARCHITECTURES
from ali_dist.model.losses import OBJECTIVES
from ali_dist.runs.trackers import TRACKERS
from ali_dist.storage import OPENERS, open_store
from ali_dist.storage.base import Store
from ali_dist.training.precision import Precision
from ali_dist.training.step import LossWeights, Step, TrainBatch
from ali_dist.training.update_rules import UPDATE_RULES, Situation, choose_update_rule
from tests.docs.pages import EXTENDING, check_command_lines
from tests.helpers.networks import (
    BATCH_SIZE,
    CPU,
    copy_state,
    gradients_of_step,
    gradients_of_two_backward_passes,
    make_inputs,
    make_networks,
    relative_error,
)
from tests.helpers.runs import find_newest_checkpoint, tiny_config
from tests.helpers.store_contract import StoreContract
from tests.helpers.trained import labelled_images, run_folder, trained

PAGE = EXTENDING.read_text(encoding="utf-8")
TABLES: tuple[Any, ...] = (
    OBJECTIVES,
    UPDATE_RULES,
    ARCHITECTURES,
    METRICS,
    EVALUATIONS,
    SOURCES,
    OPENERS,
    TRACKERS,
)


@pytest.fixture(autouse=True)
def _restored_tables() -> Iterator[None]:
    """Take the rows of the examples out again."""
    copies = [dict(table) for table in TABLES]
    yield
    for table, copy in zip(TABLES, copies, strict=True):
        table.clear()
        table.update(copy)


def blocks_of(heading: str) -> list[str]:
    """The Python blocks below a heading of the page."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"docs/extending.md has no section {heading!r}"
    return re.findall(r"^```python\n(.*?)^```", section[1], re.DOTALL | re.MULTILINE)


def run_example(heading: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Execute the first block below a heading, as a module that can be imported."""
    name = f"example_{heading.lower().replace(' ', '_')}"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(blocks_of(heading)[0], name, "exec"), module.__dict__)
    return module


def test_every_example_has_a_test_and_every_line_of_the_table_an_example() -> None:
    headings = re.findall(r"^## (An? .*)$", PAGE, re.MULTILINE)
    links = re.findall(r"^\| \[.*?\]\(#([a-z-]+)\)", PAGE, re.MULTILINE)
    assert [heading.lower().replace(" ", "-") for heading in headings] == links
    source = Path(__file__).read_text(encoding="utf-8")
    for heading in headings:
        assert f'run_example("{heading}"' in source, heading


def test_the_commands_of_the_page_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the rows of the examples are there."""
    for heading in ("An architecture", "An evaluation", "A data set"):
        run_example(heading, monkeypatch)
    check_command_lines(EXTENDING, monkeypatch)


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("loss", set(OBJECTIVES)),
        ("update", {*UPDATE_RULES, "auto"} - {"inverse"}),  # which follows from objective.game
    ],
)
def test_the_schema_names_the_rows_of_the_tables(setting: str, names: set[str]) -> None:
    """The schema lies below the tables and cannot read them, so the names are written out there."""
    assert set(typing.get_args(typing.get_type_hints(ObjectiveConfig)[setting])) == names


# ---- model and training ----------------------------------------------------------------------------------------------


def test_a_new_loss_has_the_gradients_of_two_backward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two updates, under each rule that is exact; `auto` takes the cheapest of them."""
    run_example("A loss", monkeypatch)
    for rule in ("scaled", "coupled", "penalised"):
        ali = make_networks()
        for seed in (1, 2):
            weights = LossWeights(cycle_x=1.0, r1=0.5 if rule == "penalised" else 0.0)
            theirs = gradients_of_two_backward_passes(ali, "least_squares", weights, seed, make_inputs())
            mine, _ = gradients_of_step(ali, rule, "least_squares", weights, seed, make_inputs())
            assert relative_error(mine, theirs) < 1e-5
            with torch.no_grad():
                for parameter, gradient in zip(
                    [*ali.generator_parameters(), *ali.discriminator_parameters()], mine, strict=True
                ):
                    parameter.sub_(gradient, alpha=0.01)
    objective = ObjectiveConfig(loss="least_squares")  # type: ignore[arg-type]
    situation = Situation(objective=objective, couples_samples=False, precision="fp32")
    assert choose_update_rule("auto", situation).name == "scaled"


def test_a_new_update_rule_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two updates move all weights, by the gradients of two backward passes; its refusal is a sentence."""
    run_example("An update rule", monkeypatch)
    weights = LossWeights(cycle_x=1.0)
    mine, _ = gradients_of_step(make_networks(), "separate", "nonsaturating", weights, 1, make_inputs())
    assert (
        relative_error(
            mine, gradients_of_two_backward_passes(make_networks(), "nonsaturating", weights, 1, make_inputs())
        )
        < 1e-5
    )
    ali = make_networks()
    optimizer = torch.optim.Adam([*ali.generator_parameters(), *ali.discriminator_parameters()], lr=1e-3)
    rule = UPDATE_RULES["separate"]
    step = Step(rule, "nonsaturating", ali, ali, optimizer, Precision("fp32", CPU), global_batch_size=BATCH_SIZE)
    before = copy_state(ali)
    for _ in range(2):
        result = step(TrainBatch(*make_inputs()), weights)
        assert all(torch.isfinite(value) for value in result)
    names = [name for name, _ in ali.named_parameters()]
    assert not any(torch.equal(before[name], copy_state(ali)[name]) for name in names)
    penalized = Situation(objective=ObjectiveConfig(r1=1.0), couples_samples=False, precision="fp32")
    with pytest.raises(InputError, match="objective.update is 'separate', but objective.r1 is 1"):
        choose_update_rule("separate", penalized)


def test_a_new_architecture_builds_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example("An architecture", monkeypatch)
    config = tiny_config(tmp_path, model__architecture="small", data__image_size=None, run__images=48)
    run_local(config)
    assert find_newest_checkpoint(config).name == "step-000000002"


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_of_images(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of a few updates on images without labels."""
    folder = tmp_path_factory.mktemp("run")
    return trained(folder, labelled_images(folder / "images", "none"))


def test_a_new_metric_is_a_row_of_the_table(
    run_of_images: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the line that the page shows in the evaluator, the command computes it, and knows it by name."""
    example = run_example("A metric", monkeypatch)
    anchor, line = blocks_of("A metric")[1].splitlines()
    source = Path(evaluators.__file__).read_text(encoding="utf-8")
    assert anchor in source, f"the page shows the line {anchor.strip()!r}, which the evaluator does not have"
    changed = {"__name__": evaluators.__name__, "largest_correlation": example.largest_correlation}
    exec(compile(source.replace(f"{anchor}\n", f"{anchor}\n{line}\n", 1), "evaluators", "exec"), changed)
    monkeypatch.setattr(evaluators.ImageEvaluator, "evaluate", changed["ImageEvaluator"].evaluate)
    code = evaluate.main([str(run_folder(run_of_images)), "--metrics", "latent_correlation", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert code == 0
    assert re.search(r"Latent correlation +0\.\d+", shown)
    assert "Reconstruction error" not in shown


def test_a_new_evaluation_is_offered_by_the_command(
    run_of_images: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its options are parsed, checked, and refused for other evaluations."""
    run_example("An evaluation", monkeypatch)
    run = str(run_folder(run_of_images))
    shifts = []
    for percent in ("1", "50"):
        assert evaluate.main([run, "--what", "noise", "--percent", percent, "--device", "cpu"]) == 0
        match = re.search(r"Shift under noise +([\d.]+)", capsys.readouterr().out)
        assert match
        shifts.append(float(match[1]))
    assert shifts[0] < shifts[1]
    assert evaluate.main([run, "--what", "noise", "--percent", "0"]) == 2
    assert evaluate.main([run, "--what", "svm", "--percent", "20"]) == 2
    assert "--percent applies to --what noise, not to svm" in capsys.readouterr().err


# ---- data and storage ------------------------------------------------------------------------------------------------


def test_a_new_data_set_is_prepared_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command with its own option, and as built-in data."""
    run_example("A data set", monkeypatch)
    command = ["stripes", str(tmp_path / "command"), "--width", "1", "--jobs", "1", "--verify"]
    assert prepare.main(command) == 0
    ensure_prepared("stripes", str(tmp_path / "first-use"))
    for folder, width in (("command", 1), ("first-use", 2)):
        store = open_store(str(tmp_path / folder / "train"))
        index = load_index(store)
        assert index.num_samples == 200
        assert index.extra["source"]["width"] == width
        x, y = load_arrays(store, index)
        assert x.shape == (200, 1, 8, 8)
        assert y is not None
        assert index.classes == ("across", "down")


class TestMemoryStore(StoreContract):
    """The example passes what every store passes."""

    @pytest.fixture
    def store(self, monkeypatch: pytest.MonkeyPatch) -> Store:
        run_example("A storage backend", monkeypatch)
        return open_store("memory://bucket/data")


def test_data_can_be_prepared_into_a_new_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the row knows the scheme."""
    run_example("A storage backend", monkeypatch)
    assert prepare.main(["mixture", "memory://bucket/points", "--samples", "50", "--jobs", "1", "--verify"]) == 0
    assert load_index(open_store("memory://bucket/points/train")).num_samples == 50


# ---- runs and launchers ----------------------------------------------------------------------------------------------


def test_a_new_launcher_trains_stops_in_time_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch that the page shows chooses it; the loop saves when it asks, and finishes in the next job."""
    example = run_example("A launcher", monkeypatch)
    monkeypatch.setitem(sys.modules, "ali_dist.launchers.slurm", example)
    branch: dict[str, Any] = {}
    body = textwrap.indent(textwrap.dedent(blocks_of("A launcher")[1]), "    ")
    exec(f"import os\ndef choose():\n{body}", branch)
    config = tiny_config(tmp_path)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "0")
    with pytest.raises(Stopped):
        branch["choose"]()(config)
    assert find_newest_checkpoint(config).name == "step-000000000"
    monkeypatch.setenv("SLURM_JOB_END_TIME", "4102444800")
    summary = branch["choose"]()(config)
    assert summary["status"] == "finished"
    assert summary["restarts"] == 1


def test_a_new_tracker_receives_the_records_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_example("A tracker", monkeypatch)
    config = tiny_config(tmp_path, report__trackers="tensorboard,csv")
    run_local(config)
    with (run_folder(config) / "losses.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == ["48", "96", "144", "192"]
    assert all(float(row["d_loss"]) > 0 for row in rows)
