"""Metrics mean what they say: known answers on models and data whose true scores are known."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from ali_dist.errors import InputError
from ali_dist.evaluation import classifiers
from ali_dist.evaluation.catalog import is_known_key
from ali_dist.evaluation.evaluators import ImageEvaluator, MixtureEvaluator, keep_size, make_evaluator
from ali_dist.evaluation.frechet import Gaussian, scaled_frechet_distance
from ali_dist.evaluation.interfaces import BidirectionalModel, LabelledArrays, ModelEvaluator
from ali_dist.evaluation.probe import LinearProbe
from ali_dist.model.data_spec import DataSpec

IMAGE_KEYS = {
    "reconstruction_mse",
    "reconstruction_mse_mean",
    "reconstruction_mse_reference",
    "latent_mmd2",
    "latent_std_min",
    "latent_std_max",
    "sigma_mean",
    "compared_images",
    *(key + end for key in ("swd", "precision", "recall", "density", "coverage_real") for end in ("", "_reference")),
}
LABEL_KEYS = {
    "frechet",
    "frechet_reference",
    "label_kept",
    "label_entropy",
    "label_entropy_reference",
    "classifier_accuracy",
    "probe_accuracy",
    "probe_features_accuracy",
    "probe_raw_accuracy",
    "probe_random_accuracy",
}


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class PixelModel:
    """z is the image itself: reconstructs perfectly with sigma 0, and samples noise."""

    side: int = 8
    log_sigma: float | None = None
    stain: Tensor | None = None
    seen: list[tuple[int, bool]] = field(default_factory=list)
    condition_size: int = 0
    num_classes: int = 0

    @property
    def latent_size(self) -> int:
        return self.side**2

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        self.seen.append((len(x), torch.is_inference_mode_enabled()))
        mu = x.flatten(1)
        return mu, None if self.log_sigma is None else torch.full_like(mu, self.log_sigma)

    def features(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return x.flatten(1)

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        self.seen.append((len(z), torch.is_inference_mode_enabled()))
        x = z.view(-1, 1, self.side, self.side)
        return x if self.stain is None else x + self.stain

    def classify(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def untrained(self, seed: int) -> PixelModel:
        return replace(self, seen=[])


def stripes(count: int, seed: int, labelled: bool = True) -> LabelledArrays:
    """Images [N, 1, 8, 8] of 4 classes: a bright pair of rows in one of 4 places, on noise."""
    g = draws(seed)
    y = torch.arange(count) % 4
    x = torch.rand(count, 1, 8, 8, generator=g) * 0.4
    x[torch.arange(count)[:, None], 0, torch.stack([2 * y, 2 * y + 1], 1)] += 0.5
    return LabelledArrays(x, y if labelled else None)


@pytest.fixture(scope="module")
def evaluator() -> ImageEvaluator:
    return ImageEvaluator(stripes(1200, 0), stripes(600, 1), samples=700, seed=3)


# ---- images ----------------------------------------------------------------------------------------------------


def test_a_perfect_autoencoder_keeps_what_the_originals_have(evaluator: ImageEvaluator) -> None:
    metrics = evaluator.evaluate(PixelModel())
    assert set(metrics) == IMAGE_KEYS | LABEL_KEYS
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())
    assert metrics["reconstruction_mse"] == metrics["reconstruction_mse_mean"] == metrics["sigma_mean"] == 0
    assert metrics["label_kept"] == metrics["classifier_accuracy"] > 0.98
    assert metrics["probe_accuracy"] == metrics["probe_raw_accuracy"] == metrics["probe_random_accuracy"] == 1
    assert metrics["label_entropy_reference"] == pytest.approx(math.log(4))
    # It samples noise, and that shows.
    assert metrics["frechet"] > 20 * metrics["frechet_reference"]


def test_probe_reads_what_is_there_and_nothing_else() -> None:
    """Labels in the embedding: all right. Noise: chance level, so the holdout is not trained on."""
    probe = LinearProbe(stripes(1200, 5), stripes(400, 6), seed=0)
    assert probe.accuracy(lambda x: x) == 1.0
    g = draws(7)
    assert probe.accuracy(lambda x: torch.randn(len(x), 300, generator=g)) == pytest.approx(0.25, abs=0.1)


def test_without_labels_the_metrics_that_need_them_are_left_out() -> None:
    train, holdout = stripes(50, 0), stripes(20, 1, labelled=False)
    assert set(ImageEvaluator(train, holdout, samples=10, seed=0).evaluate(PixelModel())) == IMAGE_KEYS


def test_without_labels_good_samples_are_told_from_noise_and_from_few() -> None:
    """A model of the data, one that gives an image over and over, and one of noise."""
    train, holdout = stripes(500, 0, labelled=False), stripes(300, 1, labelled=False)
    pool = stripes(300, 2).x

    class Sampler(PixelModel):
        images = pool

        def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
            rows = (z[:, 0].double() * 1e6).long() % len(self.images)
            return self.images[rows]

    evaluator = ImageEvaluator(train, holdout, samples=400, seed=0)
    good, noise = evaluator.evaluate(Sampler()), evaluator.evaluate(PixelModel())
    lone = Sampler()
    lone.images = pool[:1]
    single = evaluator.evaluate(lone)
    assert good["compared_images"] == 300
    assert good["swd"] < 2 * good["swd_reference"] < 0.2 * min(single["swd"], noise["swd"])
    assert good["coverage_real"] > 0.6 > 0.1 > max(single["coverage_real"], noise["coverage_real"])
    assert good["precision"] > 0.8 > noise["precision"]
    assert single["recall"] == 0
    assert good["coverage_real_reference"] == pytest.approx(1 - 2**-5, abs=0.03)


def test_classes_of_the_holdout_split_that_training_lacks_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "STEPS", 20)
    train, holdout = stripes(200, 0), stripes(100, 1)
    assert train.y is not None
    kept = train.y < 2
    part = LabelledArrays(train.x[kept], train.y[kept])
    assert ImageEvaluator(part, holdout, samples=20, seed=0).evaluate(PixelModel())["unseen_classes"] == 2


def test_with_too_few_images_for_neighbors_there_is_no_measure_of_samples() -> None:
    metrics = ImageEvaluator(stripes(50, 0), stripes(5, 1, labelled=False), samples=10, seed=0).evaluate(PixelModel())
    assert "swd" not in metrics
    assert metrics["compared_images"] == 5


def test_one_class_alone_has_no_metrics_of_classes() -> None:
    """A classifier of one class is always right, and its features say nothing."""
    lone = [
        LabelledArrays(split.x, torch.zeros(len(split.x), dtype=torch.int64))
        for split in (stripes(40, 0), stripes(30, 1))
    ]
    assert set(ImageEvaluator(*lone, samples=30, seed=0).evaluate(PixelModel())) == IMAGE_KEYS


def test_reconstructions_use_sampled_codes_and_sigma_is_not_a_variance() -> None:
    """With z = x + sigma epsilon, the error is sigma^2; mu alone gives 0. log sigma -1 means sigma 1/e."""
    split = stripes(400, 0, labelled=False)
    metrics = ImageEvaluator(split, split, samples=2, seed=0).evaluate(PixelModel(log_sigma=-1.0))
    assert metrics["sigma_mean"] == pytest.approx(math.exp(-1))
    assert metrics["reconstruction_mse"] == pytest.approx(math.exp(-2), rel=0.03)
    assert metrics["reconstruction_mse_mean"] == 0


def test_reconstruction_error_is_measured_at_the_stored_size() -> None:
    """A chequered error that vanishes in 2x2 means does not count, in the reference neither."""
    stain = 0.2 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2 - 1).float()
    split = stripes(100, 0, labelled=False)
    model = PixelModel(stain=stain)
    full = ImageEvaluator(split, split, samples=2, seed=0).evaluate(model)
    halved = ImageEvaluator(split, split, samples=2, seed=0, native_from_unit=lambda x: F.avg_pool2d(x, 2))
    pooled = halved.evaluate(model)
    assert full["reconstruction_mse"] == pytest.approx(0.04, rel=1e-4)
    assert pooled["reconstruction_mse"] < 1e-10
    small = F.avg_pool2d(split.x, 2)
    assert pooled["reconstruction_mse_reference"] == pytest.approx(float(small.var(0, correction=0).mean()), rel=1e-4)


def test_same_seed_same_metrics_other_seed_other_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built twice from the same data, so the classifier is part of the claim; and the seed does reach the noise."""
    monkeypatch.setattr(classifiers, "STEPS", 40)
    model = PixelModel(log_sigma=-1.0)
    train, holdout = stripes(300, 0), stripes(100, 1)
    once, again, other = (ImageEvaluator(train, holdout, samples=50, seed=seed).evaluate(model) for seed in (5, 5, 6))
    assert once == again
    for key in ("frechet", "frechet_reference", "reconstruction_mse", "latent_mmd2"):
        assert once[key] != other[key], key


def test_evaluation_leaves_global_generators_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run must not change because it is evaluated."""
    monkeypatch.setattr(classifiers, "STEPS", 10)

    def states() -> tuple[bytes, str, str]:
        return torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), repr(random.getstate())

    before = states()
    images = ImageEvaluator(stripes(60, 0), stripes(40, 1), samples=20, seed=0)
    images.evaluate(PixelModel(log_sigma=-1.0))
    points = MixtureEvaluator(LabelledArrays(GRID), means=GRID, std=0.05, samples=50, seed=0)
    points.evaluate(Oracle())
    assert states() == before


def test_models_are_called_in_small_batches_without_gradients(evaluator: ImageEvaluator) -> None:
    model = PixelModel()
    evaluator.evaluate(model)
    assert max(size for size, _ in model.seen) <= 500
    assert all(inference for _, inference in model.seen)
    assert sum(size for size, _ in model.seen) > 600


def test_a_diverged_model_is_reported_not_averaged(evaluator: ImageEvaluator) -> None:
    with pytest.raises(FloatingPointError, match="diverged"):
        evaluator.evaluate(PixelModel(log_sigma=float("nan")))


def test_a_split_that_is_too_small_is_named() -> None:
    with pytest.raises(InputError, match="holdout split holds 1 sample"):
        ImageEvaluator(stripes(10, 0), stripes(1, 1), samples=2, seed=0)


@pytest.mark.parametrize(("side", "factor"), [(16, 1), (64, 1), (128, 2), (256, 4)])
def test_a_classifier_takes_no_more_time_for_larger_images(side: int, factor: int) -> None:
    """It sees them at 64 pixels: what only differs within a square of that reduction is the same to it."""
    x = torch.rand(8, 3, side, side, generator=torch.Generator().manual_seed(side))
    data = LabelledArrays(x, torch.arange(8) % 2)
    classifier = classifiers.train_classifier(data, seed=0, device="cpu", steps=2)
    reduced = F.avg_pool2d(x, factor)
    assert min(reduced.shape[2:]) <= classifiers.LARGEST_SIDE
    assert torch.equal(classifier.features(x), classifier.features(reduced))


def test_on_real_digits_the_classifier_is_right_and_notices_a_lost_class() -> None:
    """It is right on 96 % or more; holdout is far closer to training than noise, or than nine of the ten digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]
    x, y = F.interpolate(x, size=16, mode="bilinear"), torch.tensor(digits.target)
    shuffled = torch.randperm(len(x), generator=draws(0))
    train, holdout = (LabelledArrays(x[rows], y[rows]) for rows in (shuffled[:1437], shuffled[1437:]))

    assert train.y is not None
    assert holdout.y is not None
    classifier = classifiers.train_classifier(train, seed=0, device="cpu")
    reference = Gaussian.fit(classifier.features(train.x))

    def distance(images: Tensor) -> float:
        return scaled_frechet_distance(classifier.features(images), reference)

    is_right = classifier.classify(classifier.features(holdout.x)) == holdout.y
    assert float(is_right.float().mean()) > 0.96
    assert 4 < distance(holdout.x) < 25
    assert distance(torch.rand(1000, 1, 16, 16, generator=draws(1))) > 400
    assert distance(train.x[train.y != 3]) > 1.5 * distance(holdout.x)


# ---- mixtures --------------------------------------------------------------------------------------------------


GRID = torch.cartesian_prod(torch.arange(-4.0, 5, 2), torch.arange(-4.0, 5, 2))


class Oracle:
    """The exact generator of the grid: z_1 picks the mode by its quantile, the others place the point."""

    latent_size, condition_size, num_classes = 3, 0, 0
    normal = torch.distributions.Normal(0.0, 1.0)

    def encode(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        mode = torch.cdist(x, GRID).argmin(1)
        return torch.cat([self.normal.icdf((mode[:, None] + 0.5) / 25), (x - GRID[mode]) / 0.05], 1), None

    def features(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        return self.encode(x)[0]

    def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
        mode = (self.normal.cdf(z[:, 0]) * 25).long().clamp(0, 24)
        return GRID[mode] + 0.05 * z[:, 1:]

    def classify(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def untrained(self, seed: int) -> Oracle:
        return self


def test_the_true_generator_of_a_mixture_scores_full_marks() -> None:
    g = draws(8)
    holdout = LabelledArrays(GRID.repeat(40, 1) + 0.05 * torch.randn(1000, 2, generator=g))
    metrics = MixtureEvaluator(holdout, means=GRID, std=0.05, samples=2500, seed=0).evaluate(Oracle())
    assert (metrics["modes"], metrics["modes_assigned"], metrics["right_mode"]) == (25, 25, 1)
    assert metrics["high_quality"] == pytest.approx(0.989, abs=0.01)
    assert metrics["reconstruction_mse"] < 1e-9
    assert abs(metrics["latent_mmd2"]) < 0.01
    assert 0.9 < metrics["latent_std_min"] <= metrics["latent_std_max"] < 1.1


def test_reconstruction_error_of_points_is_a_squared_distance() -> None:
    """A shift by (3, 4) costs 25, not 12.5."""

    class Shifted(Oracle):
        def decode(self, z: Tensor, c: Tensor | None = None) -> Tensor:
            return super().decode(z) + torch.tensor([3.0, 4.0])

    evaluator = MixtureEvaluator(LabelledArrays(GRID.clone()), means=GRID, std=0.05, samples=10, seed=0)
    metrics = evaluator.evaluate(Shifted())
    assert metrics["reconstruction_mse"] == pytest.approx(25, rel=1e-4)


# ---- the choice -------------------------------------------------------------------------------------------------


def test_the_evaluator_is_chosen_by_what_the_data_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key that one of them gives is in the catalog; a split that is not needed is not loaded."""
    monkeypatch.setattr(classifiers, "STEPS", 5)

    def refuse() -> LabelledArrays:
        raise AssertionError("this split is not needed")

    def choose(spec: DataSpec, train: LabelledArrays | None, holdout: LabelledArrays | None) -> ModelEvaluator | None:
        return make_evaluator(
            spec,
            refuse if train is None else lambda: train,
            refuse if holdout is None else lambda: holdout,
            samples=20,
            seed=0,
            native_from_unit=keep_size,
            device="cpu",
        )

    striped = stripes(60, 0)
    attributes = LabelledArrays(striped.x, (torch.rand(60, 2, generator=draws(0)) < 0.5).float(), ("hat", "tie"))
    images = DataSpec((1, 8, 8))
    mixture = DataSpec((2,), "float32", mixture={"means": GRID.tolist(), "std": 0.05})
    conditional = PixelModel(condition_size=2)
    chosen: list[tuple[ModelEvaluator | None, BidirectionalModel, set[str]]] = [
        (choose(images, striped, striped), PixelModel(), {"probe_accuracy", "label_kept"}),
        (choose(images, attributes, attributes), conditional, {"condition_balanced_hat", "condition_kept_tie"}),
        (choose(mixture, None, LabelledArrays(GRID)), Oracle(), {"modes", "right_mode"}),
    ]
    for evaluator, model, expected in chosen:
        assert evaluator is not None
        keys = evaluator.evaluate(model).keys()
        assert expected <= keys
        assert all(is_known_key(key) for key in keys)
    assert choose(DataSpec((2,), "float32"), None, None) is None


# ---- imports --------------------------------------------------------------------------------------------------


def test_importing_evaluation_and_reports_is_cheap_and_one_way() -> None:
    """No training, no data, no ray, and nothing heavy before it is needed."""
    code = (
        "import sys; import ali_dist.evaluation.evaluators, ali_dist.report.page, ali_dist.report.image_grids, "
        "ali_dist.report.mixture_figure, ali_dist.report.terminal; "
        "names = ('ali_dist.training.', 'ali_dist.data.', 'ray', 'boto3', "
        "'sklearn', 'matplotlib', 'rich', 'webdataset'); "
        "print([m for m in sys.modules for n in names if m == n or m.startswith(n if n[-1] == '.' else n + '.')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert result.stdout.strip() == "[]"
