"""The answer of a sweep: best.yaml trains what the best trial trained, results.csv has all, and records come back."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from ali_dist.config.loading import flatten_mapping, from_mapping, load_preset
from ali_dist.errors import InputError
from tests.helpers.sweeps import make_record, small_plan, store_of
from tuning.results import describe_result, format_best_yaml, format_results_csv, write_results
from tuning.trial_record import find_best_record, load_records, save_record


def test_best_yaml_is_a_preset_that_trains_what_the_trial_trained(tmp_path):
    """Except for where the run lies and how often the sweep evaluates: these are not what is learned."""
    plan, best = small_plan(tmp_path), make_record(1, 0.7)
    path = tmp_path / "best.yaml"
    path.write_text(format_best_yaml(plan, best), encoding="utf-8")
    of_preset = dict(flatten_mapping(from_mapping(load_preset(str(path))).to_mapping()))
    of_trial = dict(
        flatten_mapping(
            plan.config_for_trial(1, best.settings, {"scale.workers": "0", "scale.device": "cpu"}).to_mapping()
        )
    )
    different = {name for name in of_preset if of_preset[name] != of_trial[name]}
    places = {"run.name", "run.dir", "run.images", "data.url", "scale.workers", "scale.device"}
    assert different <= places | {f"report.{name}_every" for name in ("evaluate", "gallery", "checkpoint")}
    assert of_preset["optim.lr_d"] == best.settings["optim.lr_d"]


def test_best_yaml_is_as_long_as_the_preset_and_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    """A sweep's trials are short; what they find is to be trained for as long as the preset is."""
    monkeypatch.chdir(tmp_path)
    plan, best = small_plan(tmp_path), make_record(1, 0.7)
    text = format_best_yaml(plan, best)
    (tmp_path / "best.yaml").write_text(text, encoding="utf-8")
    config = from_mapping(load_preset("best.yaml"))
    assert plan.budget == 8000
    assert config.run.images == from_mapping(load_preset("mixture")).run.images > 8000
    assert "Trials saw 8,000 images" in text
    assert config.data.url == "data/mixture-grid"
    assert str(tmp_path) not in text
    longer = dataclasses.replace(plan, preset_images=0)  # of an earlier version
    assert "Trials saw" not in format_best_yaml(longer, best)


def test_best_yaml_keeps_data_that_lie_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for url in (f"{tmp_path}/data", "s3://bucket/data"):
        plan = small_plan(tmp_path)
        base = {**plan.base, "data": {**plan.base["data"], "url": url}}
        assert f'url: "{url}"' in format_best_yaml(dataclasses.replace(plan, base=base), make_record(1, 0.7))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.discriminator_dropout", None),
        ("objective.unary", True),
        ("optim.eps", 1e-12),
        ("data.source", "mixture-ring"),
    ],
)
def test_best_yaml_keeps_values_of_every_kind(tmp_path, name, value):
    plan, best = small_plan(tmp_path), make_record(1, 0.7)
    best.settings[name] = value
    path = tmp_path / "best.yaml"
    path.write_text(format_best_yaml(plan, best), encoding="utf-8")
    assert dict(flatten_mapping(from_mapping(load_preset(str(path))).to_mapping()))[name] == value


def test_results_have_a_row_for_every_trial_with_its_settings_metrics_and_reason(tmp_path):
    records = [
        make_record(0, 0.5),
        make_record(1, None, state="failed", reason='no "data", sorry'),
        make_record(2, 0.6, state="stopped"),
    ]
    rows = list(csv.DictReader(io.StringIO(format_results_csv(small_plan(tmp_path), records))))
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    assert rows[0]["coverage"] == "0.5"
    assert rows[0]["right_mode"] == "1.0"
    assert (rows[1]["coverage"], rows[1]["reason"]) == ("", 'no "data", sorry')
    assert float(rows[2]["optim.lr_d"]) == records[2].settings["optim.lr_d"]


def test_the_best_is_a_finished_trial_even_if_a_stopped_one_was_ahead():
    """Scores of different budgets do not compare."""
    records = [
        make_record(0, 0.4),
        make_record(1, 0.9, state="stopped"),
        make_record(2, 0.5),
        make_record(3, 0.99, state="pruned"),
    ]
    assert find_best_record(records, higher_is_better=True).number == 2
    assert find_best_record(records, higher_is_better=False).number == 0
    assert find_best_record(records[1:2] + records[3:], higher_is_better=True).number == 1
    assert find_best_record([make_record(0, None), records[3]], higher_is_better=True) is None


def test_the_answer_says_so_when_the_presets_own_settings_stand(tmp_path):
    plan = small_plan(tmp_path)
    assert "own settings stand" in describe_result(plan, [make_record(0, 0.5), make_record(1, 0.4)])
    assert "against 0.5 of the preset's own settings under the same budget" in describe_result(
        plan, [make_record(0, 0.5), make_record(1, 0.6)]
    )
    assert "has not finished" in describe_result(plan, [make_record(1, 0.6, state="stopped")])
    assert "No trial came through" in describe_result(plan, [make_record(1, None, state="failed")])


def test_there_is_no_best_yaml_without_a_score(tmp_path):
    plan = small_plan(tmp_path)
    write_results(plan, [make_record(0, None, state="failed")], store_of(plan))
    assert [item.key for item in store_of(plan).list()] == ["results.csv"]


def test_records_come_back_as_they_were_and_a_damaged_one_is_named(tmp_path):
    store = store_of(small_plan(tmp_path))
    records = [make_record(0, 0.5), make_record(11, None, state="running", reason="")]
    for record in records:
        save_record(store, record)
    store.put("trials/000/checkpoints/x/trial.json", b"not ours")
    assert load_records(store) == records
    store.put("trials/011/trial.json", b'{"number": 11')
    with pytest.raises(InputError, match=r"trials/011/trial.json cannot be read"):
        load_records(store)


def test_a_repeated_evaluation_replaces_the_one_before():
    """A trial that goes on from a checkpoint measures some points twice."""
    record = make_record(0, 0.5)
    record.add_evaluation({"images": 4000.0, "high_quality": 0.3})
    assert [e["images"] for e in record.evaluations] == [4000.0, 8000.0]
    assert record.evaluations[0]["high_quality"] == 0.3
