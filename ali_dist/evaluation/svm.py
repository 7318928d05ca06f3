"""The paper's measure of a representation: an L2-SVM on encoder features with 1000 labels.

Source: Dumoulin et al., ICLR 2017 (arXiv 1606.00704), section 4.3 (SVHN), with what the authors' code adds to the text:
- the features are used as they are: no scaling, no pooling;
- the last 10,000 of 73,257 training samples are held out (`prepare` writes them as the split `valid`); the rest is the
  pool that labels are drawn from;
- labels are drawn class-balanced, 100 of each of 10 classes;
- C = exp(u), u on 50 even points of [-20, 20], the lowest validation error of one draw; then it stays;
- test error, mean and population standard deviation over 100 draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ali_dist.errors import InputError
from ali_dist.evaluation.probe import balanced_rows
from ali_dist.evaluation.protocol import SVM_DRAWS, SVM_LABELS

PENALTIES = np.exp(np.linspace(-20, 20, 50))
VALIDATION_SHARE = 10_000 / 73_257
ROWS_AT_ONCE = 4096

OnFit = Callable[[int, int], None]
"""Called after each fit with (fits done, fits in all)."""


Rows = slice | NDArray[np.int64] | NDArray[np.bool_]


class FeatureRows(Protocol):
    """Features float32 [N, F], in memory or in a file (`stored_features.py`)."""

    @property
    def ndim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype[np.float32]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Rows) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class EmbeddedSplit:
    """One split as a classifier sees it: features float32 [N, F] and class labels int64 [N].

    Rows of it are in memory; the whole may be in a file.

    Raises:
        ValueError: They are of another form.
    """

    features: FeatureRows
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.features.dtype != np.float32:
            raise ValueError(f"Features must be float32 [N, F], not {self.features.dtype} {self.features.shape}.")
        if self.labels.shape != self.features.shape[:1]:
            raise ValueError(f"Labels must be [{self.features.shape[0]}], one for each row, not {self.labels.shape}.")

    def __getitem__(self, rows: Rows) -> EmbeddedSplit:
        return EmbeddedSplit(self.features[rows], self.labels[rows])


@dataclass(frozen=True)
class SvmResult:
    """What the protocol has measured.

    Attributes:
        error_mean: Test misclassification, mean over the draws (0 to 1).
        error_std: Its population standard deviation over the draws.
        penalty: The C that was chosen.
        validation_error: The validation error of that C, with the one draw that chose it.
        draws: Number of draws of labels.
        labels: Labels in each draw.
        features: F, the size of the representation.
        unconverged: Test fits that reached the solver's limit of 1000 iterations.
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
    """A linear classifier, which predicts the class of the largest x W + b.

    Attributes:
        weights: W [F, K].
        bias: b [K].
        classes: The classes, int64 [K].
        converged: Whether the solver ended before its limit of iterations.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    classes: NDArray[np.int64]
    converged: bool

    def error(self, split: EmbeddedSplit) -> float:
        """Share (0 to 1) of wrong labels; the features are widened to float64 a few rows at a time."""
        wrong = 0
        for start in range(0, len(split.labels), ROWS_AT_ONCE):
            rows = split[start : start + ROWS_AT_ONCE]
            best = (rows.features[:].astype(np.float64) @ self.weights + self.bias).argmax(axis=1)
            wrong += int((self.classes[best] != rows.labels).sum())
        return wrong / len(split.labels)


def hold_out_rows(count: int) -> tuple[slice, slice]:
    """Choose the rows of the label pool and of the validation part among `count` training samples.

    The validation part is the last 10,000 of 73,257, as in the authors' code, and the same share of any other number.

    Raises:
        InputError: There are too few samples to split.
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
    labels: int = SVM_LABELS,
    draws: int = SVM_DRAWS,
    seed: int = 0,
    penalties: Sequence[float] | NDArray[np.float64] = PENALTIES,
    standardize: bool = False,
    jobs: int = 1,
    on_fit: OnFit | None = None,
) -> SvmResult:
    """Run the protocol; the same arguments give the same result, whatever `jobs`.

    A fit of 1000 labels and 5,376 features takes 1 to 2 seconds of one core, a whole run of 150 fits 5 to 10 minutes.

    Args:
        pool: Labelled training samples that labels are drawn from.
        validation: Held-out training samples that choose C (see `hold_out_rows`).
        test: Samples that the reported errors are measured on.
        labels: Labels in each draw, equally many of each class.
        draws: Draws of labels for the test error.
        seed: Seed of every draw and of the solver.
        penalties: The candidates for C; of equally good ones the first is taken.
        standardize: Scale each feature by its mean and standard deviation over the drawn samples. The paper does not.
        jobs: Processes that fit. Threads would not do: the solver's random numbers are global to a process.
        on_fit: Called after each fit.

    Raises:
        InputError: A class is missing, or has too few samples for a draw.
    """
    if draws < 1 or len(penalties) < 1:
        raise ValueError(f"{draws} draws and {len(penalties)} penalties were given, but both must be at least 1.")
    _require_known_classes(pool, validation, "validation")
    _require_known_classes(pool, test, "test")
    total = len(penalties) + draws
    done = 0

    def fit_each(rows: Iterator[NDArray[np.int64]], candidates: Sequence[float]) -> Iterator[LinearMachine]:
        nonlocal done
        tasks = ((pool[chosen], float(C)) for chosen, C in zip(rows, candidates, strict=True))
        for machine in _fit_all(tasks, seed, standardize, jobs):
            done += 1
            if on_fit is not None:
                on_fit(done, total)
            yield machine

    # Draw 0 chooses C on the validation part; draws 1, 2, ... are tested with it.
    first_draw = balanced_rows(pool.labels, labels, [seed, 0])
    errors = [m.error(validation) for m in fit_each((first_draw for _ in penalties), list(penalties))]
    best = int(np.argmin(errors))
    test_draws = (balanced_rows(pool.labels, labels, [seed, draw]) for draw in range(1, draws + 1))
    outcomes = [(m.error(test), m.converged) for m in fit_each(test_draws, [float(penalties[best])] * draws)]
    test_errors = np.array([error for error, _ in outcomes])
    return SvmResult(
        error_mean=float(test_errors.mean()),
        error_std=float(test_errors.std()),
        penalty=float(penalties[best]),
        validation_error=errors[best],
        draws=draws,
        labels=len(first_draw),
        features=pool.features.shape[1],
        unconverged=sum(not converged for _, converged in outcomes),
    )


def fit_svm(train: EmbeddedSplit, penalty: float, *, seed: int, standardize: bool = False) -> LinearMachine:
    """Fit scikit-learn's LinearSVC with its defaults (squared hinge, L2, one against the rest) to `train`.

    With more features than samples the problem is first turned into the N-dimensional space that the samples span.
    The dual solver sees inner products only, so it takes the same steps to the same solution, with 1000 samples of
    5,376 features 13 times faster.
    """
    from sklearn.svm import LinearSVC

    x = train.features[:].astype(np.float64)
    mean = np.zeros(x.shape[1])
    scale = np.ones(x.shape[1])
    if standardize:
        mean = x.mean(axis=0)
        scale = x.std(axis=0)
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
    if weights.shape[1] == 1:  # of two classes, scikit-learn fits one machine, for the second
        weights, bias = np.hstack([-weights, weights]), np.hstack([-bias, bias])
    weights = weights / scale[:, None]
    return LinearMachine(weights, bias - mean @ weights, solver.classes_, int(solver.n_iter_) < solver.max_iter)


def _fit_quietly(solver: object, x: NDArray[np.float64], labels: NDArray[np.int64]) -> None:
    """Fit without warnings at the limit of iterations; `LinearMachine.converged` tells of it instead."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(x, labels)  # type: ignore[attr-defined]  # scikit-learn has no types


def _fit_all(
    tasks: Iterator[tuple[EmbeddedSplit, float]], seed: int, standardize: bool, jobs: int
) -> Iterator[LinearMachine]:
    """Fit machines in the order of the tasks, which are made when needed, since each holds a copy of its samples."""
    if jobs == 1:
        yield from (fit_svm(train, penalty, seed=seed, standardize=standardize) for train, penalty in tasks)
        return
    from sklearn.utils.parallel import Parallel, delayed

    calls = (delayed(fit_svm)(train, penalty, seed=seed, standardize=standardize) for train, penalty in tasks)
    yield from Parallel(n_jobs=jobs, return_as="generator", pre_dispatch=2 * jobs)(calls)


def _require_known_classes(pool: EmbeddedSplit, split: EmbeddedSplit, name: str) -> None:
    unknown = np.setdiff1d(split.labels, pool.labels)
    if len(unknown):
        raise InputError(
            f"The {name} split holds class {unknown[0]}, which the pool of {len(pool.labels)} labelled training "
            f"samples does not: use splits with the same classes."
        )
