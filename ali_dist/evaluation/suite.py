"""The metrics of a run: `ImageEvaluator` (or `evaluate_images`) for images, `evaluate_mixture` for 2-D mixtures.

Shares are from 0 to 1. A key that ends in `_reference` is what an ideal or trivial competitor scores on the metric of
that name; `report/metric_notes.py` says which. All noise follows from `seed`: two models evaluated with the same seed
see the same latent draws, the same judge and the same labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation.classifier import Classifier, train_classifier
from ali_dist.evaluation.coverage import coverage, entropy, right_mode
from ali_dist.evaluation.frechet import Gaussian, scaled_frechet_distance
from ali_dist.evaluation.inference import decode, encode, encode_mean, in_batches, sample_decoder
from ali_dist.evaluation.latent import latent_match
from ali_dist.evaluation.probe import LinearProbe
from ali_dist.evaluation.protocol import Bidirectional, Split
from ali_dist.evaluation.reconstruction import mean_image_error, mean_squared_distance, mean_squared_error

__all__ = ["Bidirectional", "ImageEvaluator", "Split", "evaluate_images", "evaluate_mixture", "identity"]


def identity(x: Tensor) -> Tensor:
    """Images stay at the size the model trains at."""
    return x


class ImageEvaluator:
    """Evaluates models on one pair of image splits.

    What depends on the data alone (the judge, its features of the training images, the raw-pixel probe) is made once,
    here: about 5 seconds on one core for digits. Without labels in both splits, metrics that need them are left out.
    """

    def __init__(
        self,
        train: Split,
        holdout: Split,
        *,
        samples: int,
        seed: int,
        native: Callable[[Tensor], Tensor] = identity,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare the references.

        Args:
            train: judge, Fréchet reference and probe labels come from here.
            holdout: reconstructions and accuracies are measured here.
            samples: decoder samples per evaluation, at least 2.
            seed: of every draw.
            native: images at the training size to the size they are stored at; reconstructions are compared there.
            device: where models and the judge run.

        Raises:
            InputError: a split is too small to be measured.
        """
        assert samples >= 2, f"needs at least 2 samples, not {samples}"
        _require_samples(train, "training")
        _require_samples(holdout, "holdout")
        self._holdout, self._native = holdout, native
        self._samples, self._seed, self._device = samples, seed, device
        self._native_x = native(holdout.x)
        self._mean_image_error = mean_image_error(native(train.x), self._native_x)
        self._labelled = _Labelled.of(train, holdout, seed, native, device)

    def evaluate(self, model: Bidirectional) -> dict[str, float]:
        """All metrics of `model`, by name; see `report/metric_notes.py` for what each one means."""
        mu, sigma, z = encode(model, self._holdout.x, self._seed, self._device)
        x_rec = decode(model, z, self._device)
        x_rec_mean = decode(model, mu, self._device)
        metrics = {
            "reconstruction_mse": mean_squared_error(self._native_x, self._native(x_rec)),
            "reconstruction_mse_mean": mean_squared_error(self._native_x, self._native(x_rec_mean)),
            "reconstruction_mse_reference": self._mean_image_error,
            **latent_match(z, self._seed),
            "sigma_mean": float(sigma.double().mean()),
        }
        if self._labelled is not None:
            x_tilde = sample_decoder(model, self._samples, self._seed, self._device)
            metrics |= self._labelled.judge_images(x_tilde, x_rec)
            metrics |= self._labelled.probe_model(model, self._seed, self._device)
        return metrics


@dataclass(frozen=True)
class _Labelled:
    """What labels add: a judge of images and linear probes of representations."""

    judge: Classifier
    reference: Gaussian
    labels: Tensor
    probe: LinearProbe
    constants: dict[str, float]

    @classmethod
    def of(
        cls,
        train: Split,
        holdout: Split,
        seed: int,
        native: Callable[[Tensor], Tensor],
        device: torch.device | str,
    ) -> _Labelled | None:
        if train.y is None or holdout.y is None:
            return None
        probe = LinearProbe(train, holdout, seed=seed)
        judge = train_classifier(train, seed=seed, device=device)
        reference = Gaussian.of(judge.features(train.x))
        features = judge.features(holdout.x)
        constants = {
            "frechet_reference": scaled_frechet_distance(features, reference),
            "classifier_accuracy": _agreement(judge.classify(features), holdout.y),
            "probe_raw_accuracy": probe.accuracy(native),
            "label_entropy_reference": entropy(torch.bincount(train.y)),
        }
        return cls(judge, reference, holdout.y, probe, constants)

    def judge_images(self, x_tilde: Tensor, x_rec: Tensor) -> dict[str, float]:
        """Metrics of decoder samples `x_tilde` and of the holdout's reconstructions `x_rec`."""
        features = self.judge.features(x_tilde)
        rec_labels = self.judge.classify(self.judge.features(x_rec))
        return {
            "frechet": scaled_frechet_distance(features, self.reference),
            "label_entropy": entropy(torch.bincount(self.judge.classify(features))),
            "label_kept": _agreement(rec_labels, self.labels),
            **self.constants,
        }

    def probe_model(self, model: Bidirectional, seed: int, device: torch.device | str) -> dict[str, float]:
        """Linear readability of the encoder, beside the same encoder untrained."""
        untrained = model.untrained(seed)
        return {
            "probe_accuracy": self.probe.accuracy(lambda x: encode_mean(model, x, device)),
            "probe_features_accuracy": self.probe.accuracy(
                lambda x: in_batches(model.features, x, device, "encoder's feature map")
            ),
            "probe_random_accuracy": self.probe.accuracy(lambda x: encode_mean(untrained, x, device)),
        }


def evaluate_images(
    model: Bidirectional,
    train: Split,
    holdout: Split,
    *,
    samples: int,
    seed: int,
    native: Callable[[Tensor], Tensor] = identity,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """All image metrics of one model; to evaluate several, keep an `ImageEvaluator`. Arguments as there."""
    evaluator = ImageEvaluator(train, holdout, samples=samples, seed=seed, native=native, device=device)
    return evaluator.evaluate(model)


def evaluate_mixture(
    model: Bidirectional,
    holdout: Split,
    *,
    means: Tensor,
    std: float,
    samples: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Metrics of a model of a Gaussian mixture with equal weights.

    Args:
        model: works on points [N, D] in the units of `means`.
        holdout: points [N, D] of the mixture.
        means: [K, D].
        std: of every component, in every direction.
        samples: decoder samples, at least 2 (2,500 is usual with a quality threshold, 10,000 in the paper).
        seed: of every draw.
        device: where the model runs.

    Returns:
        The keys of `coverage.coverage` and `latent.latent_match`; right_mode and reconstruction_mse (squared distance
        |x - G(z)|^2 in squared data units) with z ~ q(z|x) on the holdout split.

    Raises:
        InputError: the holdout split is too small to be measured.
    """
    _require_samples(holdout, "holdout")
    _, _, z = encode(model, holdout.x, seed, device)
    x_rec = decode(model, z, device)
    return {
        **coverage(sample_decoder(model, samples, seed, device), means, std),
        "right_mode": right_mode(holdout.x, x_rec, means),
        "reconstruction_mse": mean_squared_distance(holdout.x, x_rec),
        **latent_match(z, seed),
    }


def _require_samples(split: Split, name: str) -> None:
    if len(split.x) < 2:
        raise InputError(
            f"The {name} split holds {len(split.x)} samples, but evaluation needs at least 2: "
            f"choose a larger split, or set report.evaluation to none."
        )


def _agreement(labels: Tensor, truth: Tensor) -> float:
    """Share (0 to 1) of equal entries."""
    return float((labels == truth).double().mean())
