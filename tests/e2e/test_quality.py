"""The digits preset, cut short: it learns to sample and to reconstruct what it was shown."""

import math
from pathlib import Path

import pytest
import torch

from ali_dist.config.loading import from_mapping, load_preset
from ali_dist.launchers.local import run_local


@pytest.mark.slow
def test_a_third_of_the_digits_preset_already_keeps_digits(tmp_path: Path):
    places = {"run.name": "short", "run.dir": str(tmp_path), "data.url": str(tmp_path / "data"), "scale.workers": "0"}
    threads = torch.get_num_threads()
    summary = run_local(from_mapping(load_preset("digits"), places, {"run.images": 64 * 400, "scale.device": "cpu"}))
    torch.set_num_threads(threads)
    assert summary is not None
    metrics = summary["metrics"]
    assert metrics["label_kept"] > 0.88
    assert metrics["reconstruction_mse"] < 0.012  # 0.074 for the mean image
    assert metrics["frechet"] < 80  # over 1000 for noise
    assert metrics["label_entropy"] > math.log(10) - 0.15  # no digit is lost
    assert metrics["probe_accuracy"] > metrics["probe_random_accuracy"]
    assert 0.6 < metrics["latent_std_min"] <= metrics["latent_std_max"] < 1.4
