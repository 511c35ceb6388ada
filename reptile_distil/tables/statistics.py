"""What a table of results with few seeds can claim: means with their spread, and comparisons of two methods.

Which comparison answers which question:

- `compare_paired`: does one *method* beat the other, over training runs? One score per seed, or per (task, seed).
- `pairs_needed`: how many runs would it take to see such a difference?
- `mcnemar`, `paired_bootstrap`: does one *trained model* beat the other, over test examples? Correctness for accuracy;
  any metric for the rest. Neither knows anything of the spread between seeds.

Undefined scores (None, NaN) are refused everywhere, never dropped: who leaves a run out does so visibly.

Sources:

- Efron and Tibshirani: An Introduction to the Bootstrap. Chapman & Hall 1993.
- Good: Permutation, Parametric and Bootstrap Tests of Hypotheses. Springer 2005.
- Dror, Baumer, Shlomov and Reichart: The Hitchhiker's Guide to Testing Statistical Significance in Natural Language
  Processing. ACL 2018, which says what test suits which score.
- Cohen: Statistical Power Analysis for the Behavioral Sciences. Second edition, Erlbaum 1988.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Metric = Callable[[NDArray[Any], NDArray[Any]], float]
"""(predictions (N,), labels (N,)) → score."""

TIE = 1e-9
"""Two values of a test statistic are tied when they differ by no more than this part of its largest value."""

ROUNDING = 1e-12
"""Two scores are equal when they differ by no more than this part of the larger magnitude: it is rounding error."""

_LIKE_NORMAL = 10_000
"""Of more pairs than this, t and normal distribution ask for the same number but two."""


class Summary(NamedTuple):
    """The mean of n scores and their standard deviation (n - 1 in the denominator; NaN for n = 1)."""

    mean: float
    std: float
    n: int


class PairedComparison(NamedTuple):
    """First minus second over n pairs: the difference, its confidence interval, the two-sided p-value."""

    mean_difference: float
    low: float
    high: float
    p_value: float
    n: int


class McNemar(NamedTuple):
    """How many examples only the first, and only the second model has right; the two-sided p-value."""

    only_first: int
    only_second: int
    p_value: float


def summarise(scores: ArrayLike) -> Summary:
    """Mean, standard deviation and number of the scores (n,) of one method, one per seed.

    Raises `ValueError` for no scores, and for undefined ones: a mean over the seeds that happened to have a score is
    not the mean over the seeds.
    """
    (values,) = _numbers(scores=scores)
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return Summary(float(np.mean(values)), std, len(values))


def compare_paired(
    first: ArrayLike, second: ArrayLike, *, confidence: float = 0.95, num_resamples: int = 10_000, seed: int = 0
) -> PairedComparison:
    """Two methods by their scores (n,) on the same seeds, or the same (task, seed) cells, in the same order.

    The p-value is that of the permutation test over the signs of the differences (Good 2005), which under the null
    are symmetric about 0: the part of the 2^n sign flips whose mean is as far from 0 as the observed one. All flips are
    taken where 2^n <= num_resamples (n <= 13 by default), else num_resamples random ones, counted as (b + 1) / (m + 1).

    A difference of at most `ROUNDING` (1e-12) of the larger magnitude of its two scores counts as 0: equal means can
    differ by that much where their terms were added in another order.

    The interval is the expanded percentile bootstrap (Hesterberg: What Teachers Should Know About the Bootstrap. The
    American Statistician 69, 2015), the plain one for large n.

    What few seeds cannot show: with n seeds no p is below 2 / 2^n, so 3 seeds give 0.25 at best, 5 seeds 0.0625, and
    6 are the first that can fall below 0.05. A large p from so few says nothing of equality. The interval never leaves
    the range of the n differences, and at 95 % it *is* that range for n <= 4: it holds the true mean in about 50 %
    (n = 2), 75 % (3), 88 % (4) and 92 % (5) of cases, for normal differences, rather than 95 %. So an interval without
    0 is no evidence by itself there; go by p. With n = 1 the bounds are NaN and p is 1. Cells of one task are alike,
    not independent: p over (task, seed) cells speaks of these tasks with new seeds, not of new tasks.

    Raises `ValueError` for unequal lengths, no scores, undefined scores, or settings out of range.

    >>> compared = compare_paired([0.71, 0.74, 0.70, 0.73], [0.70, 0.71, 0.68, 0.71])
    >>> round(compared.mean_difference, 4), compared.p_value  # the second is 2 / 2^4: no four seeds say more
    (0.02, 0.125)
    """
    _check_settings(confidence, num_resamples)
    first_scores, second_scores = _numbers(first=first, second=second)
    differences = _differences(first_scores.astype(float), second_scores.astype(float))
    mean, n = float(np.mean(differences)), len(differences)
    if n == 1:  # scipy refuses a single pair; both of its sign flips are as far from 0 as itself.
        return PairedComparison(mean, math.nan, math.nan, 1.0, n)
    # `random_state` is the name that all of scipy >= 1.12 knows; `rng` came with 1.15. A batch bounds the memory.
    options = {"vectorized": True, "batch": 1_000, "n_resamples": num_resamples}
    interval = stats.bootstrap(
        (differences,),
        np.mean,
        # Not BCa: it is NaN for equal differences, and covers no better than the plain percentile for n <= 10.
        method="percentile",
        confidence_level=expanded_level(confidence, n),
        random_state=np.random.default_rng(seed),
        **options,
    ).confidence_interval

    # scipy's tolerance for ties is relative to the observed statistic, which is near 0 where ties matter: differences
    # of (-2, -1, 0, 1) right answers in 277 would get p = 0.5, not 0.75. So the comparison is ours, the counting its.
    threshold = abs(differences.sum()) - TIE * np.abs(differences).sum()

    def is_as_extreme(flipped: NDArray[Any], axis: int) -> NDArray[Any]:
        reached: NDArray[Any] = np.abs(flipped.sum(axis=axis)) >= threshold
        return reached.astype(float)

    test = stats.permutation_test(
        (differences,),
        is_as_extreme,
        permutation_type="samples",
        alternative="greater",
        random_state=np.random.default_rng(seed),
        **options,
    )
    return PairedComparison(mean, float(interval.low), float(interval.high), float(test.pvalue), n)


def pairs_needed(std: float, difference: float, *, power: float = 0.8, confidence: float = 0.95) -> int:
    """How many pairs a study needs that is to show a difference which is there (Cohen 1988).

    The smallest n for which the two-sided paired t-test at 1 - `confidence` finds a true mean difference of
    `difference` with probability `power`, where the pairs' differences are normal with standard deviation `std`, in the
    same unit. The power is exact: that of the noncentral t distribution.

    The permutation test of `compare_paired` needs more at small n. From fewer than 6 pairs no p is below 0.05, so n is
    6 at least at the default `confidence`. From 6 itself p is below 0.05 only where all six differences have one sign,
    and so for the least n at any `confidence`: there the probability of that, Phi(|difference| / std)^n +
    Phi(-|difference| / std)^n, must reach `power` too. For larger n the t-test alone decides; at the defaults the
    permutation test has up to 0.04 less power than that at n = 7, and 0.01 less at n = 10.

    A `std` that was itself measured on few pairs is rough, and n goes with its square: of 5 pairs it can be off by a
    factor of 2.9 upwards, of 20 by 1.5.

    Raises `ValueError` for values out of range.

    >>> pairs_needed(std=2.0, difference=1.0)
    34
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"std: expected a finite number of at least 0, got {std}")
    if not (math.isfinite(difference) and difference != 0):
        raise ValueError(f"difference: expected a finite number other than 0, got {difference}")
    if not (0 < confidence < 1 and 1 - confidence < power < 1):
        raise ValueError(f"power: expected a number between 1 - confidence and 1, got {power} at {confidence}")
    least = math.ceil(1 - math.log2(1 - confidence))  # of n pairs, no p of the permutation test is below 2 / 2^n
    two_sided = (1 + confidence) / 2
    of_normal: int = math.ceil(((stats.norm.ppf(two_sided) + stats.norm.ppf(power)) * std / difference) ** 2)
    if of_normal > _LIKE_NORMAL:
        return of_normal
    # With the spread known, fewer would do: the search goes up from there.
    n = max(least, of_normal)
    effect = abs(difference) / std if std else math.inf

    def power_of(n: int) -> float:
        of_t_test = float(stats.nct.sf(stats.t.ppf(two_sided, n - 1), n - 1, effect * math.sqrt(n)))
        of_one_sign = float(stats.norm.cdf(effect) ** n + stats.norm.cdf(-effect) ** n)
        return min(of_one_sign, of_t_test) if n == least else of_t_test

    while math.isfinite(effect) and power_of(n) < power:
        n += 1
    return n


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike) -> McNemar:
    """Two models by whether each has each example right: booleans (N,), of one seed and the same examples.

    The exact version (Dror et al. 2018): of the examples that only one model has right, each is the
    first's with probability 1/2 if the models are equally good. Without such examples p is 1.

    Raises `ValueError` for unequal lengths, no examples, or values other than true and false (1 and 0).
    """
    first, second = _numbers(first_correct=first_correct, second_correct=second_correct)
    for name, values in (("first_correct", first), ("second_correct", second)):
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"{name}: expected true and false (1 and 0), got {values[~np.isin(values, (0, 1))][0]}")
    only_first, only_second = int(np.sum(first > second)), int(np.sum(first < second))
    num_discordant = only_first + only_second
    # scipy refuses a binomial of 0 trials.
    p_value = float(stats.binomtest(only_first, num_discordant).pvalue) if num_discordant else 1.0
    return McNemar(only_first, only_second, p_value)


def paired_bootstrap(
    metric: Metric,
    first_predictions: ArrayLike,
    second_predictions: ArrayLike,
    labels: ArrayLike,
    *,
    num_resamples: int = 1_000,
    seed: int = 0,
    confidence: float = 0.95,
) -> PairedComparison:
    """Two models of one seed by any metric over N examples: F1, MCC, correlations. `mean_difference` is first - second.

    Rows are drawn with replacement, the same rows for both models (Koehn: Statistical Significance Tests for Machine
    Translation Evaluation. EMNLP 2004); the interval is the percentile one. The p-value is the part of the resamples
    whose difference is as far from the observed one as that is from 0, as (b + 1) / (m + 1) (Berg-Kirkpatrick, Burkett
    and Klein: An Empirical Investigation of Statistical Significance in NLP. EMNLP 2012; here two-sided).

    It is meant for hundreds of rows: for a handful p is too small. With N = 1 the bounds are NaN and p is 1. The metric
    is called 2 (num_resamples + 1) times, on predictions and labels of the dtypes that were given.

    Raises `ValueError` for unequal lengths, no rows, values that are no finite numbers, settings out of range, and for
    a metric that is undefined on all rows or on some of the resamples.
    """
    _check_settings(confidence, num_resamples)
    rows = _numbers(first_predictions=first_predictions, second_predictions=second_predictions, labels=labels)

    def difference(first: NDArray[Any], second: NDArray[Any], expected: NDArray[Any]) -> float:
        return float(metric(first, expected)) - float(metric(second, expected))

    observed, n = difference(*rows), len(rows[0])
    if not math.isfinite(observed):
        raise ValueError(f"the metric is undefined on all {n} rows for one of the models: there is nothing to compare")
    if n == 1:
        return PairedComparison(observed, math.nan, math.nan, 1.0, n)
    # A loop rather than scipy's bootstrap, which holds all resamples at once (QQP: 40,000 rows each) or, one at a time,
    # takes longer than the metric.
    generator = np.random.default_rng(seed)
    drawn_rows = (generator.integers(n, size=n) for _ in range(num_resamples))
    resampled = np.array([difference(*(values[drawn] for values in rows)) for drawn in drawn_rows])
    num_undefined = int(np.sum(~np.isfinite(resampled)))
    if num_undefined:
        raise ValueError(
            f"the metric is undefined on {num_undefined} of {num_resamples} resamples (constant predictions or labels, "
            "or too few rows?): give one that is defined there"
        )
    deviations = np.abs(resampled - observed)
    num_as_far = int(np.sum(deviations >= abs(observed) - TIE * max(abs(observed), float(deviations.max()))))
    p_value = (num_as_far + 1) / (num_resamples + 1)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return PairedComparison(observed, float(low), float(high), p_value, n)


def expanded_level(confidence: float, n: int) -> float:
    """The level at which the percentile interval of a mean of n is about as wide as Student's at `confidence`.

    Percentiles of resampled means know neither the n / (n - 1) of the variance nor the tails of Student's t:
    alpha' / 2 = Phi(-sqrt(n / (n - 1)) t_{alpha / 2, n - 1}) (Hesterberg 2015).
    """
    t = special.stdtrit(n - 1, (1 - confidence) / 2)
    return float(1 - 2 * special.ndtr(math.sqrt(n / (n - 1)) * t))


def _differences(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """First minus second (n,), 0 where that is rounding error."""
    differences: NDArray[Any] = first - second
    differences[np.abs(differences) <= ROUNDING * np.maximum(np.abs(first), np.abs(second))] = 0.0
    return differences


def _check_settings(confidence: float, num_resamples: int) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}: expected a fraction between 0 and 1, such as 0.95")
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}: expected at least 1")


def _numbers(**named: ArrayLike) -> tuple[NDArray[Any], ...]:
    """The values as arrays (N,), of one length and finite; else `ValueError` with the name."""
    arrays = {name: _finite(name, np.asarray(values)) for name, values in named.items()}
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {len(array)}" for name, array in arrays.items())
        raise ValueError(f"the lengths differ ({lengths}): expected the same seeds or examples, in the same order")
    return tuple(arrays.values())


def _finite(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim != 1 or not len(array):
        raise ValueError(f"{name} has shape {array.shape}: expected a non-empty (N,)")
    if array.dtype.kind == "O":
        array = array.astype(float)  # None becomes NaN
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} holds {array.dtype}: expected numbers")
    undefined = np.flatnonzero(~np.isfinite(array))
    if len(undefined):
        raise ValueError(
            f"{name}: {len(undefined)} of {len(array)} values are undefined or infinite, the first at index "
            f"{undefined[0]}: leave them out on both sides and say so, or report the result as undefined"
        )
    return array
