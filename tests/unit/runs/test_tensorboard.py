"""What TensorBoard is given of a run, read back from its files.

Run: `make test ARGS=tests/unit/runs/test_tensorboard.py`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ali_dist.config import Config
from ali_dist.errors import Stopped
from ali_dist.runs.tensorboard_tracker import LAYOUT, TensorBoardTracker
from ali_dist.training.loop import fit
from tests.helpers.runs import StoppingContext, tiny_config
from tests.helpers.trained import labelled_images, run_folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of 192 images that was stopped after 120, and went on from there."""
    folder = tmp_path_factory.mktemp("tensorboard")
    data = labelled_images(folder / "data", "none")
    places: dict[str, Any] = {"data__url": str(data), "data__source": "none", "report__gallery_every": 96}
    config = tiny_config(folder, **places, report__evaluation="auto", report__evaluation_samples=40)
    with pytest.raises(Stopped):
        fit(config, StoppingContext(stop_before=5))
    fit(config, StoppingContext())
    return config


@pytest.fixture(scope="module")
def events(config: Config) -> EventAccumulator:
    everything = {"scalars": 0, "tensors": 0, "histograms": 0}
    accumulator = EventAccumulator(str(run_folder(config) / "tensorboard"), size_guidance=everything)
    accumulator.Reload()
    return accumulator


def read_hparams(config: Config) -> list[HParamsPluginData]:
    """The parts that the tab HParams is made of, of all files of the run."""
    found = []
    for path in sorted((run_folder(config) / "tensorboard").iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    found.append(HParamsPluginData.FromString(value.metadata.plugin_data.content))
    return found


def test_scalars_have_no_step_twice_though_the_run_was_stopped(events: EventAccumulator) -> None:
    assert [point.step for point in events.Scalars("train/d_loss")] == [48, 96, 120, 144, 192]
    assert all(0.01 < point.value < 100 for point in events.Scalars("memory/host_gib"))


def test_the_layout_puts_the_losses_side_by_side_and_names_tags_that_exist(events: EventAccumulator) -> None:
    (encoded,) = {event.tensor_proto.string_val[0] for event in events.Tensors("custom_scalars__config__")}
    layout = layout_pb2.Layout.FromString(encoded)
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["D beside E and G"] == ["^train/d_loss$", "^train/g_loss$"]
    assert "^train/penalty_q$" in charts["gradient penalty, of encoder pairs (R1) and of decoder pairs (R2)"]
    assert [category.title for category in layout.category] == list(LAYOUT)
    tags = {tag for group in LAYOUT.values() for chart in group.values() for tag in chart}
    absent = {"memory/cuda_gib", "memory/cuda_peak_gib"}  # where there is no GPU
    assert tags - absent <= set(events.Tags()["scalars"])


def test_the_settings_are_there_as_text(events: EventAccumulator, config: Config) -> None:
    text = events.Tensors("settings/text_summary")[-1].tensor_proto.string_val[0].decode()
    settings = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert settings["optim.lr_d"] == config.optim.lr_d
    assert settings["run.name"] == "tiny"


def test_latents_and_logits_are_there_as_histograms(events: EventAccumulator) -> None:
    for name, values in (("mu", 40 * 4), ("sigma", 40 * 4), ("d_q", 40), ("d_p", 40)):
        points = events.Histograms(f"distributions/{name}")
        assert [point.step for point in points] == [96, 192]
        assert points[-1].histogram_value.num == values
    assert events.Histograms("distributions/sigma")[-1].histogram_value.min > 0
    mean = events.Scalars("distributions/mean_d_q")[-1].value
    histogram = events.Histograms("distributions/d_q")[-1].histogram_value
    assert mean == pytest.approx(histogram.sum / histogram.num, rel=1e-4)


def test_the_settings_are_compared_by_the_final_metrics(events: EventAccumulator, config: Config) -> None:
    summary = json.loads((run_folder(config) / "summary.json").read_text())
    parts = read_hparams(config)
    starts = [part.session_start_info for part in parts if part.HasField("session_start_info")]
    assert starts[-1].hparams["model.latent_size"].number_value == 4
    assert starts[-1].hparams["data.source"].string_value == "none"
    (*_, experiment) = (part.experiment for part in parts if part.HasField("experiment"))
    names = {metric.name.tag for metric in experiment.metric_infos}
    assert names == {f"final/{key}" for key in summary["metrics"]}
    assert "final/reconstruction_mse" in names
    final = events.Scalars("final/reconstruction_mse")
    assert final[-1].value == pytest.approx(summary["metrics"]["reconstruction_mse"])


def test_what_was_written_beyond_a_checkpoint_is_hidden_whatever_comes_first(tmp_path: Path) -> None:
    """Records may be rarer than before: what lies between the checkpoint and the first of them is of the old start."""
    record: dict[str, Any] = {"event": "train", "d_loss": 1.0}
    tracker = TensorBoardTracker(tmp_path)
    for images in (10, 20, 30):
        tracker.log_record({**record, "images": images})
    tracker.close()
    tracker = TensorBoardTracker(tmp_path)
    tracker.forget_after(10)
    tracker.log_record({**record, "images": 40})
    tracker.close()
    accumulator = EventAccumulator(str(tmp_path / "tensorboard"))
    accumulator.Reload()
    assert [point.step for point in accumulator.Scalars("train/d_loss")] == [10, 40]


def test_without_trackers_there_is_neither_a_folder_nor_a_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ali_dist.training.run_galleries.measure_distributions", lambda *words: 1 / 0)
    data = labelled_images(tmp_path / "data", "none")
    config = tiny_config(tmp_path, data__url=str(data), data__source="none", report__trackers="none")
    fit(config, StoppingContext())
    assert not (run_folder(config) / "tensorboard").exists()
    assert (run_folder(config) / "metrics.jsonl").exists()
    assert "failures" not in json.loads((run_folder(config) / "summary.json").read_text())
