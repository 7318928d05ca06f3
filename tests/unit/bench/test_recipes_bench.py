"""The search for recipes: the queue and its budget, the table, what is trained again, and two tiny trials."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ali_dist.config.loading import setting_infos
from ali_dist.data.preparation.write_splits import WriteOptions, write_splits
from ali_dist.data.sources.digits import digits_splits
from ali_dist.errors import InputError, TrainingError
from ali_dist.storage import open_store
from tests.bench.recipes import __main__ as command
from tests.bench.recipes import trial
from tests.bench.recipes.__main__ import plan_trials, read_results, select_missing
from tests.bench.recipes.process import TrialProcess
from tests.bench.recipes.queue import Ended, has_time, run_queue
from tests.bench.recipes.table import format_markdown, format_text, make_rows
from tests.bench.recipes.trial import run_trial
from tests.bench.recipes.variants import BASE, VARIANTS, choose_variants, read_variants
from tests.helpers.arrays import write_arrays
from tests.helpers.documents import make_markers

# ---- the queue -------------------------------------------------------------------------------------------------------


@dataclass
class FakeMachine:
    """A clock that moves only while the queue waits, and trials that take their time by it."""

    now: float = 0.0
    begun: list[int] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0

    def run(self, durations: list[float], *, jobs: int, budget: float) -> list[Ended]:
        starters = [lambda number=number, d=d: FakeTrial(self, number, d) for number, d in enumerate(durations)]
        return list(run_queue(starters, jobs=jobs, budget=budget, clock=lambda: self.now, pause=self.wait))

    def wait(self) -> None:
        self.now += 1


class FakeTrial:
    def __init__(self, machine: FakeMachine, number: int, duration: float) -> None:
        self.machine, self.number, self.end = machine, number, machine.now + duration
        machine.begun.append(number)
        machine.at_once += 1
        machine.most_at_once = max(machine.most_at_once, machine.at_once)

    def poll(self) -> dict[str, Any] | None:
        return {"status": "finished"} if self.machine.now >= self.end else None

    def kill(self) -> None:
        self.machine.at_once -= 1
        if self.machine.now < self.end:
            self.machine.killed.append(self.number)


def test_trials_run_in_order_as_many_at_a_time_as_asked_for() -> None:
    machine = FakeMachine()
    ended = machine.run([3, 5, 1, 1], jobs=2, budget=math.inf)
    assert machine.begun == [0, 1, 2, 3]
    assert [one.number for one in ended] == [0, 2, 1, 3]
    assert all(one.result for one in ended)
    assert (machine.most_at_once, machine.killed) == (2, [])


def test_none_begins_that_would_outlast_the_budget_judged_by_the_longest() -> None:
    machine = FakeMachine()
    ended = machine.run([6, 2, 2, 2], jobs=1, budget=13)  # after 8 s there are 5 s left, but the longest took 6
    assert machine.begun == [0, 1]
    assert [(one.number, one.has_begun) for one in ended] == [(0, True), (1, True), (2, False), (3, False)]
    assert machine.killed == []


def test_a_trial_that_runs_longer_than_any_so_far_counts_too() -> None:
    machine = FakeMachine()
    machine.run([9, 2, 2, 2, 2, 2], jobs=2, budget=12)  # after 6 s the first one has taken 6 s, and 6 s are left
    assert machine.begun == [0, 1, 2, 3]


def test_what_still_runs_when_the_budget_is_over_is_killed() -> None:
    machine = FakeMachine()
    ended = machine.run([50, 3, 3], jobs=2, budget=5)
    assert machine.killed == [0]
    assert [(one.number, one.result is None, one.has_begun) for one in ended] == [
        (1, False, True),
        (2, True, False),
        (0, True, True),
    ]
    assert machine.now <= 6


def test_whoever_stops_asking_leaves_no_trial_behind() -> None:
    machine = FakeMachine()
    starters = [lambda number=number: FakeTrial(machine, number, 2 + 9 * number) for number in range(3)]
    for _ in run_queue(starters, jobs=3, budget=math.inf, clock=lambda: machine.now, pause=machine.wait):
        break
    assert machine.killed == [1, 2]


def test_the_first_trial_always_has_time() -> None:
    assert has_time(0.1, [])
    assert not has_time(0.0, [])
    assert not has_time(5.0, [2.0, 5.0])


# ---- variants --------------------------------------------------------------------------------------------------------


def test_the_variants_change_the_base_and_each_setting_is_known_or_announced() -> None:
    """Those that are announced are refused until they exist, which is recorded."""
    announced = {"model.depth", "objective.augment", "objective.augment_probability", "data.flip"}
    assert VARIANTS["base"] == {}
    for changes in (BASE, *VARIANTS.values()):
        assert changes.keys() <= setting_infos().keys() | announced
    merged = [json.dumps({**BASE, **changes}, sort_keys=True) for changes in VARIANTS.values()]
    assert len(set(merged)) == len(VARIANTS)


def test_variants_are_chosen_by_name_or_read_from_a_file(tmp_path: Path) -> None:
    assert list(choose_variants("gamma-1, base")) == ["gamma-1", "base"]
    with pytest.raises(InputError, match="did you mean gamma-10"):
        choose_variants("gama-10")
    file = tmp_path / "v.json"
    file.write_text('{"wide": {"model.width": 2}}')
    assert choose_variants(str(file)) == {"wide": {"model.width": 2}}
    for text in ("[]", "{}", '{"a": 1}', '{"../a": {}}', "{"):
        file.write_text(text)
        with pytest.raises(InputError, match=str(file)):
            read_variants(file)


def test_what_has_ended_for_good_is_not_trained_again(tmp_path: Path) -> None:
    trials = plan_trials({"a": {}, "b": {"model.width": 2.0}}, {"optim.lr_d": 1e-3}, {"run.images": 64}, [0, 1])
    assert [(one.name, one.seed) for one in trials] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    statuses = ["finished", "refused", "diverged", "cut off"]
    results = [one.describe("data") | {"status": how} for one, how in zip(trials, statuses, strict=True)]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(result) + "\n" for result in results) + '{"name": "a", "se')
    assert [one.label for one in select_missing(trials, read_results(file), "data")] == ["b-0", "b-1"]
    assert select_missing(trials, results, "other data") == trials
    longer = plan_trials({"a": {}}, {"optim.lr_d": 1e-3}, {"run.images": 128}, [0])
    assert select_missing(longer, results, "data") == longer


# ---- the table -------------------------------------------------------------------------------------------------------


def finished(name: str, frechet: float, seed: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "seed": seed,
        "changes": {key.replace("__", "."): value for key, value in changes.items()},
        "images": 64_000,
        "status": "finished",
        "reason": "",
        "seconds": 10.0,
        "images_per_second": 6400.0,
        "losses": {"d_loss": 0.5, "g_loss": 1.25},
        "metrics": {"frechet": frechet, "frechet_reference": 4.4, "label_kept": 0.8, "classifier_accuracy": 0.9},
        "date": "2026-01-01",
        "device": "a device",
        "precision": "bf16",
        "jobs": 3,
    }


RESULTS = [
    finished("worse", 99.0, objective__r1=1.0, objective__unary=True),
    {"name": "broken", "seed": 0, "status": "diverged", "reason": "a loss is NaN."},
    finished("better", 30.0),
    finished("better", 40.0, seed=1),
    {"name": "late", "seed": 0, "status": "refused", "reason": "There is no such setting."},
    finished("late", 50.0),
]


def test_the_smallest_distance_comes_first_over_the_seeds_and_failures_say_why() -> None:
    headings, rows, failures = make_rows(RESULTS)
    assert [row[0] for row in rows] == ["better", "late", "worse"]
    cells = [dict(zip(headings, row, strict=True)) for row in rows]
    distance = "Fréchet distance (real images 4.4)"
    assert [cell[distance] for cell in cells] == ["35 ± 7.071", "50", "99"]
    assert cells[0]["images"] == "64,000, 2 seeds"
    assert cells[2]["changes"] == "r1 1, unary true"
    assert cells[2]["label kept (real images 90.0 %)"] == "80.0 %"
    assert cells[2]["D, E+G loss"] == "0.50, 1.25"
    assert failures == ["broken, seed 0: diverged (a loss is NaN.)"]


def test_both_forms_of_the_table_show_every_result() -> None:
    text, markdown = format_text(RESULTS), format_markdown(RESULTS, "Measured.")
    assert all(word in form for form in (text, markdown) for word in ("35 ± 7.071", "99", "a loss is NaN"))
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 5
    only_failures = format_markdown(RESULTS[1:2], "Measured.")
    assert "|" not in only_failures
    assert "broken" in only_failures


# ---- all of it -------------------------------------------------------------------------------------------------------


class TrialHere:
    """A trial in this process, which is over when it has begun; see `TrialProcess`."""

    def __init__(self, label: str, settings: dict[str, Any], out: Path) -> None:
        self._result = run_trial(settings, str(out / label))

    def poll(self) -> dict[str, Any]:
        return self._result

    def kill(self) -> None:
        pass


def test_two_variants_are_trained_and_a_third_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the same command trains nothing again, but for what was refused."""
    monkeypatch.setattr("ali_dist.evaluation.classifiers.STEPS", 2)
    monkeypatch.setattr(command, "TrialProcess", TrialHere)
    write_splits(open_store(str(tmp_path / "data")), digits_splits(), WriteOptions())
    variants = tmp_path / "variants.json"
    variants.write_text(
        json.dumps({"first": {}, "odd": {"model.depht": 2}, "second": {"optim.lr_d": "5e-4", "optim.lr_g": 5e-4}})
    )
    page = tmp_path / "page.md"
    begin, end = make_markers("digits")
    page.write_text(f"above\n{begin}\n{end}\nbelow\n")
    out = tmp_path / "out"
    words = ["--data", str(tmp_path / "data"), "--variants", str(variants), "--preset", "digits", "--jobs", "2"]
    words += ["--images", "32", "--evaluate-on", "20", "--device", "cpu", "--out", str(out)]
    words += ["--set", "model.width=0.1", "--set", "data.global_batch_size=16"]
    words += ["--table", str(page), "--marker", "digits"]
    assert command.main(words) == 0
    results = {result["name"]: result for result in read_results(out / "results.jsonl")}
    assert {name: result["status"] for name, result in results.items()} == {
        "first": "finished",
        "odd": "refused",
        "second": "finished",
    }
    assert "model.depht" in results["odd"]["reason"]
    first = results["first"]
    assert first["metrics"].keys() >= {"frechet", "reconstruction_mse", "label_kept", "label_entropy", "probe_accuracy"}
    assert first["images"] == 32
    assert first["images_per_second"] > 0
    assert first["parameters"].keys() == {"encoder", "decoder", "discriminator"}
    assert {"d_loss", "g_loss"} <= first["losses"].keys()
    assert first["changes"] == {}
    assert {path.name for path in out.glob("*.png")} == {
        f"{name}-0-{kind}.png" for name in ("first", "second") for kind in ("samples", "reconstructions")
    }
    text = page.read_text()
    assert text.startswith(f"above\n{begin}\n")
    assert text.endswith(f"{end}\nbelow\n")
    assert all(f"| {name} |" in text for name in ("first", "second"))
    assert "odd, seed 0: refused" in text
    capsys.readouterr()
    assert command.main(words) == 0
    assert "1 of 3 trials" in capsys.readouterr().err
    assert len(read_results(out / "results.jsonl")) == 4


def test_a_trial_is_a_process_whose_end_is_read_whatever_it_is(tmp_path: Path) -> None:
    refused = TrialProcess("odd-0", {"model.depht": 2}, tmp_path)
    ended = TrialProcess("dead-0", {}, tmp_path)
    ended.kill()
    dead = ended.poll()
    assert dead is not None
    assert (dead["status"], "SIGKILL" in dead["reason"]) == ("failed", True)
    deadline = time.monotonic() + 120
    while (result := refused.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert result["status"] == "refused"
    assert "model.depht" in result["reason"]
    refused.kill()


def test_what_goes_wrong_with_a_variant_is_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> dict[str, Any]:
        def run(config: object) -> None:
            raise error

        monkeypatch.setattr(trial, "run_local", run)
        return run_trial({"run.dir": str(tmp_path)}, str(tmp_path / "a"))

    assert fail(TrainingError("It diverged."))["status"] == "diverged"
    assert fail(FloatingPointError("NaN."))["reason"] == "NaN."
    assert fail(InputError("No."))["status"] == "refused"
    assert fail(RuntimeError("out of memory\nand more"))["reason"] == "RuntimeError: out of memory"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--data is missing"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "x", "--variants", "nothing"], "There is no variant 'nothing'"),
        (["--data", "x", "--set", "model.width"], "KEY=VALUE"),
        (["--data", "x", "--table", "nowhere.md"], "nowhere.md cannot be read"),
        (["--only-table"], "has no results"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_trained(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main([*words, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_preset_that_is_sized_by_its_pictures_is_sized_by_those_of_the_bench(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_arrays(tmp_path / "data" / "train", rng.integers(0, 256, (40, 3, 16, 16), dtype=np.uint8), None)
    options = argparse.Namespace(preset="images", data=tmp_path / "data", out=tmp_path / "out")
    base = command._load_base(options, {"run.images": 1000})
    assert base["data.global_batch_size"] == 8
    assert base["objective.augment"] == "color,translation"
    assert base["optim.warmup"] == 50, "a twentieth of the run that the bench makes"
