"""The metrics of a run: `make_evaluator` chooses what measures models of given data.

Shares are from 0 to 1. A key that ends in `_reference` is what an ideal or trivial competitor scores on the metric of
that name; `catalog.py` says which. All noise follows from `seed`: two models evaluated with the same seed see the same
latent draws, the same classifier and the same labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ali_dist.config.wording import format_count
from ali_dist.errors import InputError
from ali_dist.evaluation.batched import (
    conditions_from_labels,
    decode_batched,
    draw_rows,
    encode_batched,
    sample_decoder,
)
from ali_dist.evaluation.coverage import mode_coverage, right_mode_share
from ali_dist.evaluation.interfaces import BidirectionalModel, LabelledArrays, ModelEvaluator
from ali_dist.evaluation.label_metrics import make_label_metrics
from ali_dist.evaluation.latent import latent_match
from ali_dist.evaluation.monitor import EvaluationMonitor, WatchedModel
from ali_dist.evaluation.protocol import LEAST_SAMPLES
from ali_dist.evaluation.reconstruction import (
    constant_image_error,
    mean_image,
    mean_squared_distance,
    mean_squared_error,
)
from ali_dist.evaluation.reference_cache import ReferenceCache
from ali_dist.evaluation.sample_quality import SampleQuality
from ali_dist.model.data_spec import DataSpec

_ROWS_AT_ONCE = 2000  # a multiple of the batch, so that a model sees the same batches as in one piece


def make_evaluator(
    spec: DataSpec,
    load_train: Callable[[], LabelledArrays],
    load_holdout: Callable[[], LabelledArrays],
    *,
    samples: int,
    seed: int,
    native_from_unit: Callable[[Tensor], Tensor],
    device: torch.device | str,
    monitor: EvaluationMonitor | None = None,
    cache: ReferenceCache | None = None,
) -> ModelEvaluator | None:
    """Choose what measures models of such data, and prepare it.

    Args:
        spec: What the data are.
        load_train: Gives the training split; called for images alone.
        load_holdout: Gives the split that is measured on.
        samples: Decoder samples per evaluation, at least 2.
        seed: Seed of every draw.
        native_from_unit: Brings images from the training size to the size they are stored at.
        device: Where models and classifiers run.
        monitor: Is told of progress, and may end the evaluation; None: nobody is told.
        cache: Keeps what depends on the data alone; None: it is computed.

    Returns:
        None where there are no metrics for such data: points of no known mixture.

    Raises:
        InputError: A split is too small to be measured.
    """
    if spec.mixture is not None:
        return MixtureEvaluator(
            load_holdout(),
            means=torch.tensor(spec.mixture["means"]),
            std=float(spec.mixture["std"]),
            samples=samples,
            seed=seed,
            device=device,
            monitor=monitor,
        )
    if spec.is_images:
        return ImageEvaluator(
            load_train(),
            load_holdout(),
            samples=samples,
            seed=seed,
            native_from_unit=native_from_unit,
            device=device,
            monitor=monitor,
            cache=cache,
        )
    return None


def keep_size(x: Tensor) -> Tensor:
    """Leave images at the size the model trains at."""
    return x


class ImageEvaluator:
    """Evaluates models on one pair of image splits.

    What depends on the data alone (the classifier, its features of the training images, the raw-pixel probe) is made
    once, here: about 5 seconds on one core for digits. Without labels of one kind in both splits, metrics that need
    them are left out; how good samples are is measured with and without labels.

    Args:
        train: Trains the classifier and gives the Fréchet reference and the probe's labels.
        holdout: Reconstructions and accuracies are measured here.
        samples: Decoder samples per evaluation, at least 2.
        seed: Seed of every draw.
        native_from_unit: Brings images to the size they are stored at; reconstructions are compared there.
        device: Where models and the classifier run.
        monitor: Is told of progress, and may end the evaluation.
        cache: Keeps what depends on the data alone.

    Raises:
        InputError: A split is too small to be measured.
        EvaluationStopped: The monitor ends the preparation.
    """

    def __init__(
        self,
        train: LabelledArrays,
        holdout: LabelledArrays,
        *,
        samples: int,
        seed: int,
        native_from_unit: Callable[[Tensor], Tensor] = keep_size,
        device: torch.device | str = "cpu",
        monitor: EvaluationMonitor | None = None,
        cache: ReferenceCache | None = None,
    ) -> None:
        _require_samples(train, "training")
        _require_samples(holdout, "holdout")
        self._holdout = holdout
        self._native_from_unit = native_from_unit
        self._samples = samples
        self._seed = seed
        self._device = device
        self._monitor = monitor or EvaluationMonitor()
        cache = cache or ReferenceCache()
        reference = cache.recall(
            "mean-image", {"train": train.identity}, lambda: {"mean": mean_image(train.x, native_from_unit)}
        )
        self._mean_image_error = constant_image_error(holdout.x, reference["mean"], native_from_unit)
        self._label_metrics = make_label_metrics(
            train,
            holdout,
            seed=seed,
            native_from_unit=native_from_unit,
            device=device,
            monitor=self._monitor,
            cache=cache,
        )
        self._sample_quality = SampleQuality.prepare(
            train.x,
            holdout.x,
            samples=samples,
            seed=seed,
            features=None if self._label_metrics is None else self._label_metrics.features,
            device=device,
        )
        self._compared_images = min(samples, len(train.x), len(holdout.x))

    def evaluate(self, model: BidirectionalModel) -> dict[str, float]:
        """Measure `model`: see `ModelEvaluator`."""
        x = self._holdout.x
        c = conditions_from_labels(model, self._holdout.y)
        advance = self._monitor.start("Encoding and decoding", 3 * len(x) + self._samples)
        watched = WatchedModel(model, advance)
        mu, sigma, z_hat = encode_batched(watched, x, self._seed, self._device, c)
        error_of_mean, _ = self._measure_reconstructions(watched, mu, c)
        error, rec_labels = self._measure_reconstructions(watched, z_hat, c)
        metrics = {
            "reconstruction_mse": error,
            "reconstruction_mse_mean": error_of_mean,
            "reconstruction_mse_reference": self._mean_image_error,
            **latent_match(z_hat, self._seed),
            "sigma_mean": float(sigma.double().mean()),
            "compared_images": float(self._compared_images),
        }
        c_samples = None if c is None else draw_rows(c, self._samples, self._seed)
        x_tilde = sample_decoder(watched, self._samples, self._seed, self._device, c_samples)
        if self._sample_quality is not None:
            metrics |= self._sample_quality.measure(x_tilde)
        if self._label_metrics is not None and rec_labels is not None:
            metrics |= self._label_metrics.measure_images(x_tilde, c_samples, rec_labels)
            del x_tilde
            metrics |= self._label_metrics.measure_model(model)
        return metrics

    def _measure_reconstructions(
        self, model: BidirectionalModel, z: Tensor, c: Tensor | None
    ) -> tuple[float, Tensor | None]:
        """Decode the codes z [N, n_z] of the holdout split, a part at a time: together they are as large as the split.

        Returns:
            The mean squared error, and what the classifier sees in the reconstructions, where there is one.
        """
        x = self._holdout.x
        error = 0.0
        labels: list[Tensor] = []
        for start in range(0, len(x), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            x_rec = decode_batched(model, z[rows], self._device, None if c is None else c[rows])
            error += mean_squared_error(x[rows], x_rec, self._native_from_unit) * (len(x_rec) / len(x))
            if self._label_metrics is not None:
                labels.append(self._label_metrics.label_images(x_rec))
        return error, torch.cat(labels) if labels else None


class MixtureEvaluator:
    """Evaluates models of one Gaussian mixture with equal weights.

    Args:
        holdout: Points [N, D] of the mixture.
        means: Means of the components, [K, D], in the units of the points.
        std: Standard deviation of every component, in every direction.
        samples: Decoder samples, at least 2 (2,500 is usual with a quality threshold, 10,000 in the paper).
        seed: Seed of every draw.
        device: Where models run.
        monitor: Is told of progress, and may end the evaluation.

    Raises:
        InputError: The holdout split is too small to be measured.
    """

    def __init__(
        self,
        holdout: LabelledArrays,
        *,
        means: Tensor,
        std: float,
        samples: int,
        seed: int,
        device: torch.device | str = "cpu",
        monitor: EvaluationMonitor | None = None,
    ) -> None:
        _require_samples(holdout, "holdout")
        self._monitor = monitor or EvaluationMonitor()
        self._holdout = holdout
        self._means = means
        self._std = std
        self._samples = samples
        self._seed = seed
        self._device = device

    def evaluate(self, model: BidirectionalModel) -> dict[str, float]:
        """Measure `model`: the keys of `mode_coverage` and `latent_match`, right_mode and reconstruction_mse.

        reconstruction_mse is the squared distance |x - G(z)|^2 in squared data units, with z ~ q(z|x) on the holdout
        split.
        """
        x = self._holdout.x
        c = conditions_from_labels(model, self._holdout.y)
        model = WatchedModel(model, self._monitor.start("Encoding and decoding", 2 * len(x) + self._samples))
        _, _, z_hat = encode_batched(model, x, self._seed, self._device, c)
        x_rec = decode_batched(model, z_hat, self._device, c)
        c_samples = None if c is None else draw_rows(c, self._samples, self._seed)
        x_tilde = sample_decoder(model, self._samples, self._seed, self._device, c_samples)
        return {
            **mode_coverage(x_tilde, self._means, self._std),
            "right_mode": right_mode_share(x, x_rec, self._means),
            "reconstruction_mse": mean_squared_distance(x, x_rec),
            **latent_match(z_hat, self._seed),
        }


def _require_samples(split: LabelledArrays, name: str) -> None:
    if len(split.x) < LEAST_SAMPLES:
        raise InputError(
            f"The {name} split holds {format_count(len(split.x), 'sample')}, but evaluation needs at least "
            f"{LEAST_SAMPLES}: choose a larger split, or set report.evaluation to none."
        )
