"""The digits preset, cut short, already learns to sample and to reconstruct digits.

Run: `make test ARGS=tests/e2e/test_quality.py`
"""

import math
from pathlib import Path

import pytest
import torch

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.launchers.local import run_local


@pytest.mark.slow
def test_a_third_of_the_digits_preset_samples_and_reconstructs_digits(tmp_path: Path):
    places = {"run.name": "short", "run.dir": str(tmp_path), "data.url": str(tmp_path / "data"), "scale.workers": "0"}
    config = from_mapping(load_preset("digits"), places, {"run.images": 64 * 400, "scale.device": "cpu"})
    threads = torch.get_num_threads()
    summary = run_local(config)
    torch.set_num_threads(threads)  # a run sets the number for the whole process
    assert summary is not None
    metrics = summary["metrics"]
    assert metrics["label_kept"] > 0.88
    assert metrics["reconstruction_mse"] < 0.012  # the mean image has 0.074
    assert metrics["frechet"] < 80  # noise has more than 1000
    assert metrics["label_entropy"] > math.log(10) - 0.15  # no digit is missing among the samples
    assert metrics["probe_accuracy"] > metrics["probe_random_accuracy"]
    assert 0.6 < metrics["latent_std_min"] <= metrics["latent_std_max"] < 1.4
