"""The metrics of a run: `ImageEvaluator` (or `evaluate_images`) for images, `evaluate_mixture` for 2-D mixtures.

Shares are from 0 to 1. A key that ends in `_reference` is what an ideal or trivial competitor scores on the metric of
that name; `report/metric_notes.py` says which. All noise follows from `seed`: two models evaluated with the same seed
see the same latent draws, the same judge and the same labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ali_dist.errors import InputError
from ali_dist.evaluation.batched import (
    conditions_from_labels,
    decode_batched,
    draw_rows,
    encode_batched,
    sample_decoder,
)
from ali_dist.evaluation.coverage import mode_coverage, right_mode_share
from ali_dist.evaluation.interfaces import BidirectionalModel, LabelledArrays
from ali_dist.evaluation.label_metrics import make_label_metrics
from ali_dist.evaluation.latent import latent_match
from ali_dist.evaluation.reconstruction import mean_image_error, mean_squared_distance, mean_squared_error


def keep_size(x: Tensor) -> Tensor:
    """Images stay at the size the model trains at."""
    return x


class ImageEvaluator:
    """Evaluates models on one pair of image splits.

    What depends on the data alone (the judge, its features of the training images, the raw-pixel probe) is made once,
    here: about 5 seconds on one core for digits. Without labels of one kind in both splits, metrics that need them are
    left out.
    """

    def __init__(
        self,
        train: LabelledArrays,
        holdout: LabelledArrays,
        *,
        samples: int,
        seed: int,
        native: Callable[[Tensor], Tensor] = keep_size,
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
        self._labelled = make_label_metrics(train, holdout, seed=seed, native=native, device=device)

    def evaluate(self, model: BidirectionalModel) -> dict[str, float]:
        """All metrics of `model`, by name; see `report/metric_notes.py` for what each one means."""
        c = conditions_from_labels(model, self._holdout.y)
        mu, sigma, z = encode_batched(model, self._holdout.x, self._seed, self._device, c)
        x_rec = decode_batched(model, z, self._device, c)
        x_rec_mean = decode_batched(model, mu, self._device, c)
        metrics = {
            "reconstruction_mse": mean_squared_error(self._native_x, self._native(x_rec)),
            "reconstruction_mse_mean": mean_squared_error(self._native_x, self._native(x_rec_mean)),
            "reconstruction_mse_reference": self._mean_image_error,
            **latent_match(z, self._seed),
            "sigma_mean": float(sigma.double().mean()),
        }
        if self._labelled is not None:
            asked = None if c is None else draw_rows(c, self._samples, self._seed)
            x_tilde = sample_decoder(model, self._samples, self._seed, self._device, asked)
            metrics |= self._labelled.of_images(x_tilde, asked, x_rec)
            metrics |= self._labelled.of_model(model)
        return metrics


def evaluate_images(
    model: BidirectionalModel,
    train: LabelledArrays,
    holdout: LabelledArrays,
    *,
    samples: int,
    seed: int,
    native: Callable[[Tensor], Tensor] = keep_size,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """All image metrics of one model; to evaluate several, keep an `ImageEvaluator`. Arguments as there."""
    evaluator = ImageEvaluator(train, holdout, samples=samples, seed=seed, native=native, device=device)
    return evaluator.evaluate(model)


def evaluate_mixture(
    model: BidirectionalModel,
    holdout: LabelledArrays,
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
    c = conditions_from_labels(model, holdout.y)
    _, _, z = encode_batched(model, holdout.x, seed, device, c)
    x_rec = decode_batched(model, z, device, c)
    x_tilde = sample_decoder(model, samples, seed, device, None if c is None else draw_rows(c, samples, seed))
    return {
        **mode_coverage(x_tilde, means, std),
        "right_mode": right_mode_share(holdout.x, x_rec, means),
        "reconstruction_mse": mean_squared_distance(holdout.x, x_rec),
        **latent_match(z, seed),
    }


def _require_samples(split: LabelledArrays, name: str) -> None:
    if len(split.x) < 2:
        raise InputError(
            f"The {name} split holds {len(split.x)} samples, but evaluation needs at least 2: "
            f"choose a larger split, or set report.evaluation to none."
        )
