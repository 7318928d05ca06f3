"""evaluate: it measures what the run measured, with intervals; what cannot be measured is named."""

import contextlib
import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ali_dist import encode, evaluate, generate
from ali_dist.errors import INTERRUPTED
from ali_dist.evaluation.catalog import is_known_key
from ali_dist.inference import measurements
from ali_dist.report.tables import MetricEstimate, print_table
from tests.helpers.arrays import write_arrays
from tests.helpers.processes import ROOT
from tests.helpers.trained import CLASSES, SIDE
from tests.unit.commands.conftest import read_arrays, refusal, succeed


def evaluate_to_json(tmp_path: Path, *words) -> dict:
    succeed(evaluate, *words, "--json", tmp_path / "e.json")
    return json.loads((tmp_path / "e.json").read_text())


def test_evaluating_a_run_gives_the_numbers_of_its_summary(plain, tmp_path, capsys):
    result = evaluate_to_json(tmp_path, plain)
    assert result["metrics"] == json.loads((Path(plain) / "summary.json").read_text())["metrics"]
    assert (result["weights"], result["images"], result["intervals"]) == ("ema", 192, {})
    assert "Reconstruction error" in capsys.readouterr().out


def test_several_seeds_give_the_mean_of_each_with_an_interval_about_it(plain, tmp_path):
    words = (plain, "--samples", 50, "--metrics", "frechet,latent_mmd2")
    together = evaluate_to_json(tmp_path, *words, "--seeds", 2, "--seed", 4)
    apart = [evaluate_to_json(tmp_path, *words, "--seed", seed)["metrics"] for seed in (4, 5)]
    assert together["seeds"] == [4, 5]
    for name in ("frechet", "latent_mmd2"):
        values = [metrics[name] for metrics in apart]
        assert together["values"][name] == values
        assert together["metrics"][name] == pytest.approx(sum(values) / 2)
        low, high = together["intervals"][name]
        assert low < together["metrics"][name] < high
    assert "frechet_reference" in together["metrics"]
    assert "label_kept" not in together["metrics"]


def test_an_interval_is_student_s():
    """2, 4, 6: mean 4, s = 2, and t(0.975; 2) = 4.303."""
    estimate = MetricEstimate.from_values([2.0, 4.0, 6.0])
    assert estimate.high == pytest.approx(4 + 4.303 * 2 / 3**0.5)
    assert MetricEstimate.from_values([2.0]).low is None


def test_fid_compares_samples_with_the_training_images_at_the_stored_size(plain, tmp_path, monkeypatch):
    seen = {}

    def distances(generated, real, **options):
        seen.update(options, generated=generated, real=real)
        return {"fid": 3.0, "kid": 0.1, "kid_std": 0.01}

    monkeypatch.setattr(measurements, "inception_distances", distances)
    monkeypatch.setattr(measurements, "check_inception_available", lambda: None)
    torch.save({"any": torch.zeros(1)}, tmp_path / "w.pth")
    words = ("--what", "fid", "--inception-weights", tmp_path / "w.pth", "--samples", 20, "--seed", 6)
    metrics = evaluate_to_json(tmp_path, plain, *words)["metrics"]
    assert metrics == {"fid": 3.0, "kid": 0.1, "kid_std": 0.01, "compared_images": 20.0}
    assert (seen["seed"], seen["weights"]) == (6, tmp_path / "w.pth")
    assert len(seen["generated"]) == 20 < len(seen["real"])
    assert seen["generated"].shape[1:] == seen["real"].shape[1:] == (1, SIDE, SIDE)
    assert float(seen["real"].min()) == pytest.approx(0, abs=0.01)
    assert float(seen["real"].max()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    "values",
    [(0.99, 1.0), (0.9, 0.92), (0.0, 0.001), (0.0, 1.0), (*[0.0] * 29, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0, 0.0, 0.0)],
)
def test_an_interval_of_a_share_stays_within_0_and_1_and_holds_the_mean(values):
    estimate = MetricEstimate.from_values(values, "label_kept")
    assert 0 <= estimate.low <= estimate.mean <= estimate.high <= 1
    assert (estimate.low == estimate.high) == (len(set(values)) == 1)


def test_the_interval_of_a_share_is_student_s_on_the_logit():
    """0.9 and 0.92: s = 0.01414, so logit(0.91) ± 12.706 * 0.01 / (0.91 * 0.09); far from the ends it is Student's."""
    estimate = MetricEstimate.from_values([0.9, 0.92], "label_kept")
    middle, reach = math.log(0.91 / 0.09), 12.706 * 0.01 / (0.91 * 0.09)
    assert estimate.low == pytest.approx(1 / (1 + math.exp(reach - middle)))
    assert estimate.high == pytest.approx(1 / (1 + math.exp(-reach - middle)))
    close, plain_one = (MetricEstimate.from_values([0.5, 0.5002], key) for key in ("label_kept", ""))
    assert (close.low, close.high) == pytest.approx((plain_one.low, plain_one.high), abs=1e-6)


def test_the_interval_of_a_distance_ends_at_0():
    estimate = MetricEstimate.from_values([2.0, 4.0], "frechet")
    assert estimate.low == 0
    assert estimate.high == pytest.approx(3 + 12.706)
    assert MetricEstimate.from_values([2.0, 4.0], "latent_mmd2").low == pytest.approx(3 - 12.706)


def test_figures_of_few_samples_say_so_in_the_table(plain, capsys, tmp_path):
    shown = evaluate_to_json(tmp_path, plain, "--samples", 30, "--metrics", "frechet")["metrics"]
    count = shown["compared_images"]
    assert 0 < count <= 30
    assert f"few samples ({count:.0f})" in capsys.readouterr().out
    stream = io.StringIO()
    print_table({"swd": MetricEstimate(9.0), "compared_images": MetricEstimate(1000.0)}, stream)
    assert "few samples" not in stream.getvalue()


def test_the_svm_protocol_runs_on_mu_and_three_layers(plain, tmp_path):
    succeed(encode, plain, "--features", "mu+layers", "--out", tmp_path / "f.npz")
    result = evaluate_to_json(tmp_path, plain, "--what", "svm", "--labels", 8, "--draws", 2)["metrics"]
    assert result["svm_features"] == read_arrays(tmp_path / "f.npz")["features"].shape[1]
    assert result["svm_labels"] == 8
    assert 0 <= result["svm_error"] <= 1


def test_labels_are_from_train_and_c_is_chosen_on_valid_whatever_the_run_trained_on(plain, folder, tmp_path, capsys):
    """Stripes tell the class, but `valid` and `extra` have other classes for them than `train` and `test`."""
    data = folder / "protocol"
    rng = np.random.default_rng(3)
    for split, count, turn in (("extra", 60, 2), ("train", 120, 0), ("valid", 60, 1), ("test", 80, 0)):
        y = np.arange(count) % 4
        x = rng.integers(0, 60, (count, 1, SIDE, SIDE), dtype=np.uint8)
        x[np.arange(count)[:, None], 0, 2 * y[:, None] + np.arange(2)] += 150
        write_arrays(data / split, x, (y + turn) % 4, classes=CLASSES, per_shard=50)
    words = (plain, "--data", data, "--what", "svm", "--labels", 40, "--draws", 2)
    usual = evaluate_to_json(tmp_path, *words)
    assert usual["metrics"]["svm_error"] < 0.1 < 0.9 < usual["metrics"]["svm_validation_error"]
    assert "Labels are from train; C was chosen on valid; errors are of test." in usual["notes"]
    (data / "valid" / "index.json").rename(data / "valid" / "kept")
    held_out = evaluate_to_json(tmp_path, *words)
    assert max(held_out["metrics"]["svm_error"], held_out["metrics"]["svm_validation_error"]) < 0.1
    assert any("its last 16 samples" in note for note in held_out["notes"])
    assert evaluate_to_json(tmp_path, *words, "--train-split", "extra")["metrics"]["svm_error"] > 0.9
    assert "extras" in refusal(capsys, evaluate, *words, "--train-split", "extras")


def test_nearest_neighbors_find_the_classes_that_are_there(plain, folder, tmp_path):
    data = folder / "neighbors"
    for split, seed in (("train", 0), ("test", 1)):
        y = np.arange(100) % 4
        x = np.random.default_rng(seed).integers(0, 60, (100, 1, SIDE, SIDE), dtype=np.uint8)
        x[np.arange(100)[:, None], 0, 2 * y[:, None] + np.arange(2)] += 150
        write_arrays(data / split, x, y, classes=CLASSES, per_shard=30)
    result = evaluate_to_json(tmp_path, plain, "--data", data, "--what", "knn")
    assert result["metrics"]["knn_1_features_error"] < 0.1
    assert any("Euclidean" in note for note in result["notes"])


@pytest.mark.parametrize(("what", "measures"), [("svm", "svm_protocol"), ("knn", "neighbor_errors")])
def test_a_signal_while_features_are_measured_leaves_no_file_behind(what, measures, plain, tmp_path):
    """Of a split of SVHN's size they are 2 GB. The measurement stands still, so that the signal comes during it."""
    program = (
        "import sys, time\n"
        "from ali_dist import evaluate\n"
        "from ali_dist.inference import measurements\n"
        "def wait(pool, *words, **options):\n"
        "    assert pool.features[:].any()\n"
        "    print('measuring', flush=True)\n"
        "    time.sleep(300)\n"
        f"measurements.{measures} = wait\n"
        "sys.exit(evaluate.main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, plain, "--what", what, "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "measuring\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == INTERRUPTED
    assert not list(tmp_path.iterdir())


@pytest.fixture
def bars(monkeypatch) -> dict[str, list[int | None]]:
    """Keep of every progress bar where it was to end, and how far it came."""
    begun: dict[str, list[int | None]] = {}

    @contextlib.contextmanager
    def show_bars():
        def start_bar(name, total):
            begun[name] = [total, 0]

            def advance(count):
                begun[name][1] += count

            return advance

        yield start_bar

    monkeypatch.setattr("ali_dist.inference.measurements.show_progress_bars", show_bars)
    return begun


def test_anomaly_scores_show_how_far_reading_scoring_and_the_bootstrap_are(plain, tmp_path, bars):
    evaluate_to_json(tmp_path, plain, "--what", "anomaly", "--normal-class", "zero")
    assert set(bars) == {"Reading train", "Reading test", "Scoring", "Bootstrap"}
    assert all(total == done and total for total, done in bars.values())


def test_fid_shows_how_far_reading_drawing_and_comparing_are(plain, tmp_path, bars, monkeypatch):
    def compare(generated, real, *, on_images, **options):
        on_images(len(generated) + len(real))
        return {"fid": 1.0}

    monkeypatch.setattr("ali_dist.inference.measurements.read_weights", lambda file: {})
    monkeypatch.setattr("ali_dist.inference.measurements.check_inception_available", lambda: None)
    monkeypatch.setattr("ali_dist.inference.measurements.inception_distances", compare)
    evaluate_to_json(tmp_path, plain, "--what", "fid", "--inception-weights", "w.pth", "--samples", 40)
    assert set(bars) == {"Reading train", "Drawing samples", "Inception"}
    assert all(total == done and total for total, done in bars.values())


def test_anomaly_scores_come_with_bootstrap_intervals(plain, tmp_path):
    result = evaluate_to_json(tmp_path, plain, "--what", "anomaly", "--normal-class", "zero,1")
    low, high = result["intervals"]["auroc_reconstruction"]
    assert 0 <= low <= result["metrics"]["auroc_reconstruction"] <= high <= 1
    assert "auroc_egbad_features_standardised" in result["metrics"]


def test_a_run_that_was_trained_on_the_anomalies_is_told_of(plain, tmp_path):
    known = evaluate_to_json(tmp_path, plain, "--what", "anomaly", "--normal-class", "zero")
    assert any("was trained on other classes, too" in note for note in known["notes"])
    news = evaluate_to_json(
        tmp_path, plain, "--what", "anomaly", "--normal-class", ",".join(CLASSES[:3]), "--data", of_three(tmp_path)
    )
    assert not any("was trained on other classes" in note for note in news.get("notes", []))


def of_three(folder):
    """Other data than any run's: the training split has three of the four classes."""
    for split, classes in (("train", 3), ("test", 4)):
        x = np.random.default_rng(5).integers(0, 256, (24, 1, SIDE, SIDE), dtype=np.uint8)
        write_arrays(folder / "three" / split, x, np.arange(24) % classes, classes=CLASSES)
    return folder / "three"


@pytest.mark.parametrize(("named", "memory"), [(True, 1000), (True, 1), (False, 1000)])
def test_the_most_and_the_least_anomalous_samples_are_listed_by_name(plain, tmp_path, capsys, named, memory):
    """Of a sample of larger data, too; the class that is listed must be that of the id."""
    count = 1200  # at 16x16, 1 MB is 976 images
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8)
    origins = [f"photo{sample}.jpg" for sample in range(count)] if named else None
    for split in ("train", "test"):
        y = np.arange(count) % 4
        write_arrays(tmp_path / "data" / split, x, y, per_shard=500, classes=CLASSES, origins=origins)
    words = (plain, "--data", tmp_path / "data", "--what", "anomaly", "--normal-class", "zero", "--memory-mb", memory)
    result = evaluate_to_json(tmp_path, *words)
    listed = result["anomalies"]
    assert listed["score"] == "egbad_features_standardised"
    scores = {end: [sample["score"] for sample in listed[end]] for end in ("most", "least")}
    assert scores["most"] == sorted(scores["most"], reverse=True)
    assert scores["least"] == sorted(scores["least"])
    assert len(scores["most"]) == len(scores["least"]) == 10
    assert min(scores["most"]) >= max(scores["least"])
    for sample in (*listed["most"], *listed["least"]):
        assert sample["class"] == CLASSES[sample["id"] % 4]
        assert sample["origin"] == (f"photo{sample['id']}.jpg" if named else None)
        assert sample["place"] == f"sample {sample['id'] % 500} of 0000{sample['id'] // 500}.tar"
    out = capsys.readouterr().out
    assert "Most anomalous of test, by egbad_features_standardised:" in out
    shown = listed["least"][4]
    assert str(shown["origin"] if named else shown["place"]) in out


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--metrics", "freshet"], ["freshet", "did you mean frechet"]),
        (["--what", "fid"], ["--inception-weights"]),
        (["--what", "fid", "--inception-weights", "nowhere.pth"], ["nowhere.pth"]),
        (["--what", "anomaly"], ["--normal-class"]),
        (["--what", "anomaly", "--normal-class", "ten"], ["ten", *CLASSES]),
        (["--labels", "10"], ["--labels", "svm"]),
        (["--seeds", "31"], ["31", "30"]),
        (["--memory-mb", "0"], ["--memory-mb"]),
        (["--split", "valid"], ["valid", "test"]),
        (["--endpoint-url", "nonsense", "--data", "s3://bucket/x"], ["nonsense"]),
    ],
)
def test_an_evaluation_that_cannot_be_made_ends_with_one_sentence(words, names, plain, capsys):
    sentence = refusal(capsys, evaluate, plain, *words)
    for name in names:
        assert name in sentence


def test_of_data_larger_than_memory_allows_a_sample_is_measured_and_said(plain, folder, tmp_path, capsys):
    """2 MB are 1953 images at 16x16: every metric is there, and how many images each came from."""
    large = folder / "large"
    rng = np.random.default_rng(0)
    for split, count in (("train", 2500), ("test", 2100)):
        write_arrays(
            large / split, rng.integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8), np.arange(count) % 4,
            per_shard=500, classes=CLASSES,
        )  # fmt: skip
    result = evaluate_to_json(tmp_path, plain, "--data", large, "--memory-mb", 2)
    assert set(result["metrics"]) == set(json.loads((Path(plain) / "summary.json").read_text())["metrics"])
    assert result["samples"] == {
        "train": {"split": "train", "samples": 1953, "of": 2500},
        "holdout": {"split": "test", "samples": 1953, "of": 2100},
    }
    assert "1,953 of 2,100 samples of test" in capsys.readouterr().out


def test_conditional_models_are_measured_under_the_holdout_s_conditions(by_class, by_attributes, tmp_path):
    for run in (by_class, by_attributes):
        result = evaluate_to_json(tmp_path, run, "--samples", 40)["metrics"]
        assert 0 <= result["condition_kept"] <= 1


def test_every_condition_of_a_conditional_model_has_its_interval(by_class, tmp_path, capsys):
    result = evaluate_to_json(tmp_path, by_class, "--samples", 40, "--seeds", 2)
    assert set(result["intervals"]) == set(result["metrics"])
    assert "Condition kept: zero" in capsys.readouterr().out


@pytest.mark.parametrize("command", [evaluate, generate, encode])
def test_help_is_readable_and_a_missing_run_is_named(command, capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert "RUN" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert "RUN" in refusal(capsys, command)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--draws", "5"], "--draws applies to --what svm, not to metrics"),
        (["--what", "svm", "--samples", "9"], "--samples applies to --what metrics or fid, not to svm"),
        (["--what", "anomaly", "--workers", "2"], "--workers applies to --what svm, not to anomaly"),
        (["--labels", "1"], "--labels is '1', but must be a whole number of at least 2"),
        (["--what", "svn"], "--what is 'svn', but must be one of metrics, svm, knn, anomaly, fid; did you mean svm"),
    ],
)
def test_options_of_another_evaluation_are_refused(words, problem, plain, capsys):
    assert problem in refusal(capsys, evaluate, plain, *words)


def test_an_option_at_its_default_is_no_option_of_another_evaluation(plain, tmp_path):
    words = (plain, "--what", "anomaly", "--normal-class", "0", "--workers", 1, "--seeds", 1)
    assert evaluate_to_json(tmp_path, *words)["seeds"] == [0]


def test_every_evaluation_gives_metrics_of_the_catalog(plain, tmp_path):
    requests = {"metrics": [], "svm": ["--labels", 8, "--draws", 1], "knn": [], "anomaly": ["--normal-class", "zero"]}
    for what, options in requests.items():
        metrics = evaluate_to_json(tmp_path, plain, "--what", what, *options)["metrics"]
        assert metrics
        assert all(is_known_key(key) for key in metrics)
