"""The paper's measure of a representation: an L2-SVM on encoder features with 1000 labels.

Source: Dumoulin et al., ICLR 2017 (arXiv 1606.00704), section 4.3 (SVHN), with what the authors' code adds to the text:
- the features are used as they are: no scaling, no pooling;
- the last 10,000 of 73,257 training samples are held out; the rest is the pool that labels are drawn from;
- labels are drawn class-balanced, 100 of each of 10 classes;
- C = exp(u), u on 50 even points of [-20, 20], the lowest validation error of one draw; then it stays;
- test error, mean and population standard deviation over 100 draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ali_dist.errors import InputError
from ali_dist.evaluation.probe import balanced_rows

LABELS = 1000
DRAWS = 100
PENALTIES = np.exp(np.linspace(-20, 20, 50))
VALIDATION_SHARE = 10_000 / 73_257
ROWS_AT_ONCE = 4096

Progress = Callable[[int, int], None]
"""Called with (fits done, fits in all)."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """One split as a classifier sees it: features float32 [N, F] and class labels int64 [N]."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.features.ndim == 2 and self.features.dtype == np.float32, "features must be float32 [N, F]"
        assert self.labels.shape == self.features.shape[:1], f"{self.labels.shape} labels for {self.features.shape}"

    def __getitem__(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> EmbeddedSplit:
        return EmbeddedSplit(self.features[rows], self.labels[rows])


@dataclass(frozen=True)
class SvmResult:
    """What the protocol measured.

    Attributes:
        error_mean: test misclassification, mean over the draws (0 to 1).
        error_std: its population standard deviation over the draws.
        penalty: the C that was chosen.
        validation_error: of that C, on the one draw that chose it.
        draws: number of draws of labels.
        labels: labels in each draw.
        features: F, the size of the representation.
        unconverged: test fits that reached the solver's limit of 1000 iterations.
    """

    error_mean: float
    error_std: float
    penalty: float
    validation_error: float
    draws: int
    labels: int
    features: int
    unconverged: int


@dataclass(frozen=True)
class LinearMachine:
    """A linear classifier: the class of the largest x W + b. weights [F, K], bias [K], classes int64 [K]."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    classes: NDArray[np.int64]
    converged: bool

    def error(self, split: EmbeddedSplit) -> float:
        """Share (0 to 1) of wrong labels; the features are widened to float64 a few rows at a time."""
        wrong = 0
        for start in range(0, len(split.labels), ROWS_AT_ONCE):
            part = split[start : start + ROWS_AT_ONCE]
            best = (part.features.astype(np.float64) @ self.weights + self.bias).argmax(axis=1)
            wrong += int((self.classes[best] != part.labels).sum())
        return wrong / len(split.labels)


def hold_out_rows(count: int) -> tuple[slice, slice]:
    """Rows of the label pool and of the validation part among `count` training samples.

    The last 10,000 of 73,257, as the authors' code has it, and the same share of any other number.

    Raises:
        InputError: too few samples to split.
    """
    validation = round(count * VALIDATION_SHARE)
    if validation < 1:
        raise InputError(
            f"The training split holds {count} samples, but holding out {VALIDATION_SHARE:.1%} of it to choose the "
            f"SVM's C needs at least 4: use a larger split."
        )
    return slice(0, count - validation), slice(count - validation, count)


def svm_protocol(
    pool: EmbeddedSplit,
    validation: EmbeddedSplit,
    test: EmbeddedSplit,
    *,
    labels: int = LABELS,
    draws: int = DRAWS,
    seed: int = 0,
    penalties: Sequence[float] | NDArray[np.float64] = PENALTIES,
    standardise: bool = False,
    jobs: int = 1,
    progress: Progress | None = None,
) -> SvmResult:
    """Run the protocol; the same arguments give the same result, whatever `jobs`.

    A fit of 1000 labels and 5,376 features takes 1 to 2 seconds of one core, a whole run of 150 fits about 5 minutes.

    Args:
        pool: labelled training samples that labels are drawn from.
        validation: held-out training samples that choose C (see `hold_out`).
        test: where the errors that are reported come from.
        labels: in each draw, equally many of each class.
        draws: draws of labels for the test error.
        seed: of every draw and of the solver.
        penalties: the candidates for C; of equally good ones the first is taken.
        standardise: scale each feature by its mean and standard deviation over the drawn samples. The paper does not.
        jobs: processes that fit. Threads would not do: the solver's random numbers are global to a process.
        progress: told about each fit.

    Raises:
        InputError: a class is missing, or has too few samples for a draw.
    """
    assert draws >= 1 and len(penalties) >= 1, "needs at least one draw and one C"
    _require_known_classes(pool, validation, "validation")
    _require_known_classes(pool, test, "test")
    total, done = len(penalties) + draws, 0

    def fitted(rows: Iterator[NDArray[np.int64]], candidates: Sequence[float]) -> Iterator[LinearMachine]:
        nonlocal done
        tasks = ((pool[chosen], float(C)) for chosen, C in zip(rows, candidates, strict=True))
        for machine in _fit_all(tasks, seed, standardise, jobs):
            done += 1
            if progress is not None:
                progress(done, total)
            yield machine

    chooser = balanced_rows(pool.labels, labels, [seed, 0])
    errors = [m.error(validation) for m in fitted((chooser for _ in penalties), list(penalties))]
    best = int(np.argmin(errors))
    chosen = (balanced_rows(pool.labels, labels, [seed, draw]) for draw in range(1, draws + 1))
    outcomes = [(m.error(test), m.converged) for m in fitted(chosen, [float(penalties[best])] * draws)]
    test_errors = np.array([error for error, _ in outcomes])
    return SvmResult(
        error_mean=float(test_errors.mean()),
        error_std=float(test_errors.std()),
        penalty=float(penalties[best]),
        validation_error=errors[best],
        draws=draws,
        labels=len(chooser),
        features=pool.features.shape[1],
        unconverged=sum(not converged for _, converged in outcomes),
    )


def fit_svm(train: EmbeddedSplit, penalty: float, *, seed: int, standardise: bool = False) -> LinearMachine:
    """scikit-learn's LinearSVC with its defaults (squared hinge, L2, one against the rest) on `train`.

    With more features than samples the problem is first turned into the N-dimensional space that the samples span.
    The dual solver sees inner products only, so it takes the same steps to the same solution, with 1000 samples of
    5,376 features 13 times faster.
    """
    from sklearn.svm import LinearSVC

    x = train.features.astype(np.float64)
    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    if standardise:
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale == 0] = 1
        x = (x - mean) / scale
    basis = None
    dual = x.shape[0] < x.shape[1]  # what LinearSVC's own default would choose
    if dual:
        basis, triangle = np.linalg.qr(x.T)
        x = triangle.T
    solver = LinearSVC(C=penalty, random_state=seed, dual=dual)
    _fit_quietly(solver, x, train.labels)
    weights = solver.coef_.T if basis is None else basis @ solver.coef_.T
    bias = solver.intercept_
    if weights.shape[1] == 1:  # two classes: one machine, for the second of them
        weights, bias = np.hstack([-weights, weights]), np.hstack([-bias, bias])
    weights = weights / scale[:, None]
    return LinearMachine(weights, bias - mean @ weights, solver.classes_, int(solver.n_iter_) < solver.max_iter)


def _fit_quietly(solver: object, x: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    """Fit; reaching the limit of iterations is noted in `Machine.converged` and not warned of 150 times."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(x, labels)  # type: ignore[attr-defined]  # scikit-learn has no types


def _fit_all(
    tasks: Iterator[tuple[EmbeddedSplit, float]], seed: int, standardise: bool, jobs: int
) -> Iterator[LinearMachine]:
    """Machines in the order of the tasks, which are made as they are needed: each holds a copy of its samples."""
    if jobs == 1:
        yield from (fit_svm(train, penalty, seed=seed, standardise=standardise) for train, penalty in tasks)
        return
    from sklearn.utils.parallel import Parallel, delayed

    calls = (delayed(fit_svm)(train, penalty, seed=seed, standardise=standardise) for train, penalty in tasks)
    yield from Parallel(n_jobs=jobs, return_as="generator", pre_dispatch=2 * jobs)(calls)


def _require_known_classes(pool: EmbeddedSplit, split: EmbeddedSplit, name: str) -> None:
    unknown = np.setdiff1d(split.labels, pool.labels)
    if len(unknown):
        raise InputError(
            f"The {name} split holds class {unknown[0]}, which the pool of {len(pool.labels)} labelled training "
            f"samples does not: use splits with the same classes."
        )
