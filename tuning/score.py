"""What a sweep looks for: one number for each evaluation that a collapsed model cannot win. Pure.

Composites are products of shares from 0 to 1, so that a model has to do well in every part:

- `coverage` (mixtures): high_quality * exp(-reverse_kl) * right_mode. exp(-KL) is the share of modes that the good
  samples are in effect spread over: one mode of 25 hit perfectly scores 0.04, and samples strewn over all modes
  score their small share of good ones. right_mode is the encoder's part. A perfect model scores 0.989.
- `fidelity` (labeled images): label_kept * frechet_reference / max(frechet, frechet_reference). The second factor
  says how close samples come to what real held-out images score, which neither a single class nor noise does;
  label_kept (reconstructions that keep their class) is the encoder's part. 1 is as good as real data.
- `unlabelled_fidelity` (other images): (1 - reconstruction_mse / its reference) * swd_reference / max(swd,
  swd_reference) * coverage_real / its reference, each from 0 to 1. The first is the encoder's part, which an
  autoencoder wins; the others say how close samples come to real images, patch by patch, and how many of the real ones
  have a sample like them, which counts as 1 % at least, so that early on, before any is covered, the others decide. 1
  is as good as real data.

Sweeps over images without labels once were by `round_trip`: (1 - reconstruction_mse / its reference) *
(1 - sqrt(latent_mmd2)), each at least 0. No part of it looks at a sample, so that an autoencoder wins it whose codes
happen to be spread as the prior is. It remains for sweeps that were begun by it.

A single metric of an evaluation can be chosen instead, if its row in the catalog says that it is sweepable; it can then
be won at the cost of the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ali_dist.config.loading import did_you_mean
from ali_dist.errors import InputError
from ali_dist.evaluation.catalog import METRICS

Metrics = Mapping[str, float]
_PROPER_NOUNS = ("Fréchet",)

_LEAST_COVERAGE = 0.01


@dataclass(frozen=True, slots=True)
class ScoreMetric:
    """What trials are compared by.

    Attributes:
        name: Its name on the command line.
        title: Its name in words, as it stands within a sentence.
        higher_is_better: Whether a higher score is the better one.
        parts: Metrics of an evaluation that it is made of.
        formula: Computes it from the parts, in their order.
    """

    name: str
    title: str
    higher_is_better: bool
    parts: tuple[str, ...]
    formula: Callable[..., float]

    def score(self, metrics: Metrics) -> float | None:
        """The score of an evaluation; None where a part is missing or not finite."""
        if any(not math.isfinite(metrics.get(part, math.nan)) for part in self.parts):
            return None
        value = float(self.formula(*(metrics[part] for part in self.parts)))
        return value if math.isfinite(value) else None

    def is_better(self, score: float, other: float) -> bool:
        """Whether `score` is better than the other one."""
        return score > other if self.higher_is_better else score < other

    @property
    def mode(self) -> str:
        """The direction as Ray Tune names it: `max` or `min`."""
        return "max" if self.higher_is_better else "min"


def _coverage_score(high_quality: float, reverse_kl: float, right_mode: float) -> float:
    return high_quality * math.exp(-reverse_kl) * right_mode


def _fidelity_score(label_kept: float, frechet: float, reference: float) -> float:
    return label_kept * reference / max(frechet, reference)


def _round_trip_score(error: float, reference: float, mmd2: float) -> float:
    return max(0.0, 1 - error / max(reference, 1e-12)) * max(0.0, 1 - math.sqrt(max(mmd2, 0.0)))


def _unlabelled_fidelity_score(
    error: float, error_reference: float, swd: float, swd_reference: float, coverage: float, coverage_reference: float
) -> float:
    reconstructed = max(0.0, 1 - error / max(error_reference, 1e-12))
    near = swd_reference / max(swd, swd_reference, 1e-12)
    covered = min(1.0, coverage / max(coverage_reference, 1e-12))
    return reconstructed * near * max(covered, _LEAST_COVERAGE)


def _title_in_sentence(title: str) -> str:
    """A title of the catalog as it stands within a sentence: without its capital, unless it begins with a name."""
    first_word = title.partition(" ")[0]
    return title if first_word in _PROPER_NOUNS or first_word.isupper() else title[0].lower() + title[1:]


_COMPOSITE_METRICS = (
    ScoreMetric("coverage", "coverage", True, ("high_quality", "reverse_kl", "right_mode"), _coverage_score),
    ScoreMetric("fidelity", "fidelity", True, ("label_kept", "frechet", "frechet_reference"), _fidelity_score),
    ScoreMetric(
        "unlabelled_fidelity",
        "fidelity without labels",
        True,
        (
            "reconstruction_mse",
            "reconstruction_mse_reference",
            "swd",
            "swd_reference",
            "coverage_real",
            "coverage_real_reference",
        ),
        _unlabelled_fidelity_score,
    ),
    ScoreMetric(
        "round_trip",
        "round trip",
        True,
        ("reconstruction_mse", "reconstruction_mse_reference", "latent_mmd2"),
        _round_trip_score,
    ),
)
SCORE_METRICS: Mapping[str, ScoreMetric] = {metric.name: metric for metric in _COMPOSITE_METRICS} | {
    key: ScoreMetric(key, _title_in_sentence(info.title), info.better == "higher", (key,), float)
    for key, info in METRICS.items()
    if info.is_sweepable
}
"""What --metric may name."""

PRUNE_FROM = 1 / 3
"""Share of the budget from which a collapse counts: before, a model may just not have learned yet."""
_FEWEST_MODES = 0.2
_ENOUGH_GOOD_SAMPLES = 0.1  # a smaller share says nothing of the modes, and such a model is only slow
_FEWEST_CLASSES = 0.5


def find_score_metric(name: str) -> ScoreMetric:
    """The metric of this name.

    Raises:
        InputError: There is no such metric.
    """
    if name not in SCORE_METRICS:
        raise InputError(
            f"There is no metric {name!r}{did_you_mean(name, SCORE_METRICS).removesuffix('?')}; "
            f"metrics: {', '.join(SCORE_METRICS)}."
        )
    return SCORE_METRICS[name]


def default_score_metric(*, mixture: bool, classes: bool, supervised: bool) -> str:
    """The metric for a kind of data.

    Args:
        mixture: Whether the data are points of a known mixture.
        classes: Whether they are images with class labels.
        supervised: Whether the discriminator classifies from few labels: then its error counts.
    """
    if mixture:
        return "coverage"
    if supervised:
        return "semi_supervised_error"
    return "fidelity" if classes else "unlabelled_fidelity"


def describe_collapse(metrics: Metrics, share: float) -> str | None:
    """Why a model counts as collapsed; None if it does not.

    Args:
        metrics: Those of one evaluation.
        share: Share of the budget after which it was made, 0 to 1.
    """
    not_finite = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not_finite:
        return f"{not_finite[0]} is not finite"
    if share < PRUNE_FROM:
        return None
    modes = math.exp(-metrics.get("reverse_kl", 0.0))
    if modes < _FEWEST_MODES and metrics.get("high_quality", 0.0) >= _ENOUGH_GOOD_SAMPLES:
        return f"good samples are in effect in {modes:.0%} of the modes"
    if "label_entropy" in metrics and "label_entropy_reference" in metrics:
        classes = math.exp(metrics["label_entropy"] - metrics["label_entropy_reference"])
        if classes < _FEWEST_CLASSES:
            return f"samples are in effect of {classes:.0%} of the classes"
    return None
