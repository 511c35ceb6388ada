"""The statistics, against values worked out by hand, literal enumerations, scipy, and their own promises."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from reptile_distil.tables.statistics import (
    McNemar,
    Summary,
    compare_paired,
    mcnemar,
    paired_bootstrap,
    pairs_needed,
    summarise,
)


def zeros(values):
    return np.zeros(len(values))


def compare(differences, **options):
    return compare_paired(differences, zeros(differences), **options)


def accuracy(predictions, labels):
    return np.count_nonzero(predictions == labels) / len(labels)


def f1(predictions, labels):
    return 2 * (predictions & labels).sum() / (predictions.sum() + labels.sum())


def correlation(predictions, labels):
    """Pearson's, which of zeros and ones is Matthews'."""
    return np.corrcoef(predictions, labels)[0, 1]


def literal_sign_flip_p_value(differences):
    """Differences are integers, so that ties are exact."""
    sums = [abs(sum(map(int.__mul__, signs, differences))) for signs in itertools.product((1, -1), repeat=6)]
    return sum(total >= abs(sum(differences)) for total in sums) / 64


def right_or_wrong(seed, num_rows=100, skill=0.7):
    """Predictions of two equally good models that err independently, and the labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, num_rows)
    wrong = generator.random((2, num_rows)) >= skill
    return labels ^ wrong[0], labels ^ wrong[1], labels


# summarise


def test_mean_and_standard_deviation_with_n_minus_1():
    """Mean 12 / 4; deviations -2, -1, 1, 2, so (4 + 1 + 1 + 4) / 3."""
    assert summarise([1, 2, 4, 5]) == Summary(3.0, pytest.approx(math.sqrt(10 / 3)), 4)


def test_one_score_has_no_standard_deviation():
    mean, std, n = summarise([0.75])
    assert (mean, n) == (0.75, 1)
    assert math.isnan(std)


def test_equal_scores_have_standard_deviation_0():
    assert summarise([0.5, 0.5, 0.5]) == (0.5, 0.0, 3)


def test_the_results_are_plain_python_numbers():
    for result in (summarise([1, 2]), compare([1, 2]), mcnemar([1], [0]), paired_bootstrap(accuracy, [1], [0], [1])):
        assert {type(value) for value in result} <= {int, float}


@pytest.mark.parametrize("undefined", [None, math.nan, math.inf, -math.inf])
def test_undefined_scores_are_refused_not_dropped(undefined):
    with pytest.raises(ValueError, match="scores: 1 of 3 values are undefined or infinite, the first at index 1"):
        summarise([0.5, undefined, 0.7])
    with pytest.raises(ValueError, match="second: 2 of 3 values are undefined"):
        compare_paired([0.5, 0.6, 0.7], [0.5, undefined, undefined])


@pytest.mark.parametrize("scores", [[], [[0.5, 0.6]], 0.5, {1: 0.5}])
def test_scores_are_a_list_with_something_in_it(scores):
    with pytest.raises(ValueError, match="expected a non-empty"):
        summarise(scores)


def test_text_is_not_a_score():
    with pytest.raises(ValueError, match="expected numbers"):
        summarise(["0.5", "0.6"])


# compare_paired: the p-value


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([1, 2, 4], 2 / 8),  # sums ±7 ±5 ±3 ±1: two reach 7
        ([-1, 2, 4], 4 / 8),  # ±7 and ±5 reach 5
        ([1, -2, 4], 6 / 8),  # all but ±1 reach 3
        ([1, 2, -4], 1.0),  # all reach 1
        ([1, 1, 1, -1], 10 / 16),  # ±4 once each, ±2 four times each, 0 six times
        ([3], 1.0),
        ([3, 5], 2 / 4),
        ([0, 0, 0], 1.0),
        ([1, -1], 1.0),
        ([0, 0, 3], 1.0),  # a difference of 0 has no sign to flip: all sums are ±3
    ],
)
def test_the_p_value_counts_the_sign_flips_that_reach_the_observed_sum(differences, expected):
    assert compare(differences).p_value == pytest.approx(expected)
    assert compare([-difference for difference in differences]).p_value == pytest.approx(expected)


@pytest.mark.parametrize("n", range(1, 14))
def test_with_n_seeds_no_p_is_below_2_in_2_to_the_n(n):
    assert compare(np.arange(1, n + 1)).p_value == pytest.approx(2 / 2**n)


@pytest.mark.parametrize(
    ("right_first", "right_second", "expected"),
    [
        # Differences -2 -1 0 1: |±2 ±1 ±1| is 4, 2, 2, 0, so 3 in 4 reach 2. scipy alone says 0.5: 1/277 is not exact.
        ([253, 251, 242, 244], [255, 252, 242, 243], 0.75),
        # Differences 1 -1 3 -2, sum 1: |±3 ±2 ±1 ±1| is odd, so all reach 1. scipy alone says 0.75.
        ([258, 241, 251, 255], [257, 242, 248, 257], 1.0),
    ],
)
def test_ties_count_although_accuracies_are_rounded(right_first, right_second, expected):
    assert compare_paired(np.array(right_first) / 277, np.array(right_second) / 277).p_value == expected


@pytest.mark.parametrize("seed", range(10))
def test_the_p_value_equals_the_literal_enumeration_and_scipy(seed):
    differences = np.random.default_rng(seed).integers(-4, 7, 6)
    p_value = compare(differences / 277).p_value
    assert p_value == literal_sign_flip_p_value(differences.tolist())
    reference = stats.permutation_test(
        (differences.astype(float),), lambda d, axis: d.sum(axis=axis), permutation_type="samples", vectorized=True
    )
    assert p_value == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0, -1e9])
def test_differences_that_are_rounding_error_are_none(scale):
    """0.1 + 0.2 is 0.30000000000000004; a difference of 1e-9 is a small one, but it is there."""
    first, second = np.full(6, scale * (0.1 + 0.2)), np.full(6, scale * 0.3)
    assert (first != second).all()
    assert compare_paired(first, second) == compare_paired(second, first) == (0.0, 0.0, 0.0, 1.0, 6)
    assert compare_paired(first[:1], second[:1]).mean_difference == 0
    assert compare_paired(second * (1 + 1e-9), second).p_value == 2 / 2**6


def test_beyond_num_resamples_flips_are_sampled_and_never_give_0():
    """Of 99 flips of 20 equal signs none reaches 20 (chance 99 / 2^19): (0 + 1) / (99 + 1)."""
    assert compare(np.ones(20), num_resamples=99).p_value == 1 / 100


def test_the_boundary_between_all_flips_and_some():
    """2^4 = 16: with 16 resamples all are taken, and p is 2 / 16; with 15 it is a multiple of 1 / 16 from 1 on."""
    assert {compare([1, 2, 3, 4], num_resamples=16, seed=seed).p_value for seed in range(20)} == {2 / 16}
    sampled = {compare([1, 2, 3, 4], num_resamples=15, seed=seed).p_value for seed in range(20)}
    assert len(sampled) > 1
    assert min(sampled) == 1 / 16


def test_sampled_flips_come_near_all_flips():
    """2^15 = 32,768: a sample of 20,000 has a standard error below 0.0036."""
    differences = np.random.default_rng(0).normal(0.2, 1, 15)
    every = compare(differences, num_resamples=2**15).p_value
    assert 0.1 < every < 0.9
    assert compare(differences, num_resamples=20_000).p_value == pytest.approx(every, abs=0.015)


def test_for_many_differences_the_p_value_is_near_that_of_the_t_test():
    differences = np.random.default_rng(0).normal(0.3, 1, 60)
    assert compare(differences).p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.01)


@pytest.mark.parametrize(("n", "num_resamples"), [(6, 64), (20, 63)])
def test_under_the_null_p_is_uniform(n, num_resamples):
    """P(p <= k / 64) = k / 64 for even k; 200 draws, four standard errors."""
    samples = np.random.default_rng(0).normal(size=(200, n))
    p_values = np.array(
        [compare(sample, num_resamples=num_resamples, seed=i).p_value for i, sample in enumerate(samples)]
    )
    for k in (2, 4, 16, 32, 48):
        assert (p_values <= k / 64).mean() == pytest.approx(k / 64, abs=4 * math.sqrt(k / 64 * (1 - k / 64) / 200))


# compare_paired: the difference and its interval


def test_the_difference_is_first_minus_second_over_pairs():
    """3 - 1, 5 - 2, 4 - 3."""
    result = compare_paired([3, 5, 4], [1, 2, 3])
    assert (result.mean_difference, result.n) == (2.0, 3)


@pytest.mark.parametrize("differences", [[2, 1], [3, 1, 7], [4, -2, 9, 1]])
def test_up_to_4_seeds_the_interval_at_95_percent_is_the_range(differences):
    """Hesterberg's level for n = 4 is Phi(-sqrt(4/3) 3.182) = 0.00012, below the 4^-4 = 0.0039 of the smallest mean."""
    result = compare(differences)
    assert (result.low, result.high) == (min(differences), max(differences))


def test_the_interval_of_5_seeds():
    """Phi(-sqrt(5/4) 2.776) = 0.00096, between the 5^-5 = 0.00032 of (1, 1, 1, 1, 1) and the 0.0019 with one 2.

    So the bounds are (4 * 1 + 2) / 5 and (4 * 16 + 8) / 5.
    """
    result = compare([1, 2, 4, 8, 16])
    assert (result.low, result.high) == pytest.approx((1.2, 14.4))


def test_the_interval_of_3_seeds_at_a_third():
    """t_{1/3, 2} = 1/2 (F(t) = 1/2 + t / (2 sqrt(2 + t²)) = 2/3), so the level is Phi(-sqrt(3/2) / 2) = 0.27.

    The 27 resamples of (0, 0, 3) have mean 0 in 8 cases (0.30), 1 in 12 (up to 0.74), 2 in 6, 3 in 1.
    """
    result = compare([0, 0, 3], confidence=1 / 3)
    assert (result.low, result.high) == (0, 1)


@pytest.mark.parametrize(("n", "tail"), [(5, 0.0010), (10, 0.0086)])
def test_the_interval_takes_the_percentiles_of_hesterbergs_formula(n, tail):
    """The tails, rounded: Phi(-1.1180 * 2.7764) and Phi(-1.0541 * 2.2622), t from a table."""
    differences = np.random.default_rng(n).normal(size=n)
    resamples = np.random.default_rng(1).integers(0, n, (200_000, n))
    expected = np.quantile(differences[resamples].mean(axis=1), [tail, 1 - tail])
    assert compare(differences, num_resamples=100_000)[1:3] == pytest.approx(expected, abs=0.02)


def test_for_many_differences_the_interval_is_near_scipys_and_near_students():
    differences = np.random.default_rng(0).normal(0.3, 1, 400)
    result = compare(differences)
    for method in ("percentile", "BCa"):
        reference = stats.bootstrap((differences,), np.mean, method=method, random_state=1).confidence_interval
        assert (result.low, result.high) == pytest.approx((reference.low, reference.high), abs=0.01)
    student = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((student.low, student.high), abs=0.01)


def test_one_seed_has_no_interval():
    result = compare([3])
    assert (result.mean_difference, result.p_value, result.n) == (3, 1, 1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


@pytest.mark.parametrize("difference", [0.0, 0.25])
def test_equal_differences_have_an_interval_without_width(difference):
    result = compare([difference] * 4)
    assert result[:3] == (difference, difference, difference)


@pytest.mark.parametrize(("n", "expected"), [(5, 0.92), (10, 0.94)])
def test_the_interval_covers_the_mean_as_often_as_is_said(n, expected):
    """200 normal samples: four standard errors."""
    samples = np.random.default_rng(0).normal(size=(200, n))
    intervals = [compare(sample, num_resamples=500, seed=i)[1:3] for i, sample in enumerate(samples)]
    covered = np.mean([low < 0 < high for low, high in intervals])
    assert covered == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 200))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [2, 3, 5, 9, 20])
def test_promises_for_any_scores(n, seed):
    first, second = np.random.default_rng(seed).random((2, n))
    result = compare_paired(first, second, seed=seed)
    assert 0 < result.p_value <= 1
    assert result.low <= result.mean_difference <= result.high
    assert result.mean_difference == pytest.approx(summarise(first).mean - summarise(second).mean)
    assert compare_paired(first, second, seed=seed) == result

    swapped = compare_paired(second, first, seed=seed)
    expected = (-result.mean_difference, -result.high, -result.low, result.p_value, n)
    assert swapped == pytest.approx(expected)

    # Another order of the seeds draws other resamples: equal up to those.
    order = np.random.default_rng(seed).permutation(n)
    reordered = compare_paired(first[order], second[order], seed=seed)
    assert reordered.mean_difference == pytest.approx(result.mean_difference)
    assert reordered.p_value == pytest.approx(result.p_value, abs=0 if n < 14 else 0.03)
    assert reordered[1:3] == pytest.approx(result[1:3], abs=0 if n < 5 else 0.08)

    wider = compare_paired(first, second, seed=seed, confidence=0.99)
    assert wider.low <= result.low <= result.high <= wider.high

    scaled = compare_paired(100 * first + 7, 100 * second + 7, seed=seed)
    assert scaled[:3] == pytest.approx([100 * value for value in result[:3]])
    assert scaled.p_value == result.p_value


def test_another_seed_draws_other_resamples():
    differences = np.random.default_rng(0).normal(size=20)
    assert compare(differences, seed=1) != compare(differences, seed=2)


def test_booleans_and_unsigned_integers_are_subtracted_as_numbers():
    assert compare_paired([False, False], [True, True]).mean_difference == -1
    assert compare_paired(np.array([1, 1], dtype=np.uint8), np.array([2, 2], dtype=np.uint8)).mean_difference == -1


# mcnemar


@pytest.mark.parametrize(("effect", "expected"), [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_as_many_pairs_are_needed_as_textbooks_say(effect, expected):
    assert pairs_needed(1.0, effect) == pairs_needed(2.0, -2 * effect) == expected


def test_a_study_of_the_pairs_needed_shows_the_difference_as_often_as_is_said():
    n = pairs_needed(3.0, 2.0)
    generator, shown = np.random.default_rng(0), 0
    for _ in range(400):
        shown += compare_paired(generator.normal(2.0, 3.0, n), np.zeros(n), num_resamples=999).p_value < 0.05
    assert 0.74 <= shown / 400 <= 0.87


def test_no_fewer_pairs_are_needed_than_can_give_a_small_p():
    assert pairs_needed(0.0, 1.0) == pairs_needed(1e-9, 1.0) == 6
    assert pairs_needed(0.0, 1.0, confidence=0.9) == 5
    assert compare_paired([1.0] * 6, [0.0] * 6).p_value < 0.05 < compare_paired([1.0] * 5, [0.0] * 5).p_value


@pytest.mark.parametrize(
    ("std", "all_of_one_sign", "expected"),
    [(0.55, 0.8100, 6), (0.60, 0.7454, 7), (0.69, 0.6320, 7)],  # Phi(1 / std)^6
)
def test_of_the_fewest_pairs_all_must_have_one_sign(std, all_of_one_sign, expected):
    """The t-test of six pairs has a power of 0.94, 0.90 and 0.81; below 0.05 is only the p of six equal signs."""
    differences = np.random.default_rng(0).normal(1.0, std, (20_000, 6))
    same = np.abs(np.sign(differences).sum(axis=1)) == 6
    assert same.mean() == pytest.approx(all_of_one_sign, abs=0.015)
    assert all((compare(one).p_value < 0.05) == alike for one, alike in zip(differences[:40], same[:40], strict=True))
    assert pairs_needed(std, 1.0) == pairs_needed(10 * std, -10.0) == expected


def test_for_many_pairs_t_and_normal_distribution_need_the_same_number():
    below, above = (pairs_needed(1.0, difference) for difference in (0.028022, 0.028015))
    assert 0 <= above - below <= 10
    assert pairs_needed(1.0, 0.0028) == pytest.approx(7.8489 / 0.0028**2, rel=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"std": -1.0}, "std: expected a finite number"),
        ({"std": float("nan")}, "std: expected a finite number"),
        ({"difference": 0.0}, "difference: expected a finite number other than 0"),
        ({"power": 0.04}, "power: expected a number between"),
        ({"confidence": 1.0}, "power: expected a number between"),
    ],
)
def test_pairs_needed_refuses_what_makes_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        pairs_needed(**{"std": 1.0, "difference": 1.0, **values})


def correctness(both, only_first, only_second, neither):
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (4, 0, 2 / 16),
        (1, 5, 14 / 64),  # 2 (1 + 6) / 2^6
        (8, 2, 112 / 1024),  # 2 (1 + 10 + 45) / 2^10
    ],
)
def test_mcnemar_is_the_binomial_test_of_those_that_only_one_has_right(only_first, only_second, expected):
    result = mcnemar(*correctness(7, only_first, only_second, 5))
    assert result == McNemar(only_first, only_second, pytest.approx(expected))


def test_mcnemar_for_many_is_near_the_chi_squared_version():
    """(|30 - 50| - 1)² / 80 = 4.5125 with the correction for continuity."""
    assert mcnemar(*correctness(9, 30, 50, 9)).p_value == pytest.approx(stats.chi2.sf(4.5125, 1), abs=0.001)


@pytest.mark.parametrize("seed", range(5))
def test_mcnemar_promises_for_any_models(seed):
    first, second = np.random.default_rng(seed).random((2, 50)) < 0.7
    result = mcnemar(first, second)
    assert 0 < result.p_value <= 1
    assert result.only_first - result.only_second == first.sum() - second.sum()
    assert mcnemar(second, first) == (result.only_second, result.only_first, pytest.approx(result.p_value))
    order = np.random.default_rng(seed).permutation(50)
    assert mcnemar(first[order], second[order]) == result
    assert mcnemar(first.astype(int), second.astype(float)) == result


def test_mcnemar_never_rejects_too_often():
    """The exact version is conservative: at most 5 %, here about 3 % of 200, standard error 0.012."""
    generator = np.random.default_rng(0)
    p_values = np.array([mcnemar(*(generator.random((2, 80)) < 0.7)).p_value for _ in range(200)])
    assert 0.005 <= (p_values <= 0.05).mean() <= 0.06
    assert (p_values <= 0.5).mean() > 0.3


def test_mcnemar_wants_correctness_not_predictions():
    with pytest.raises(ValueError, match=r"second_correct: expected true and false \(1 and 0\), got 2"):
        mcnemar([1, 0, 1], [1, 2, 0])


# paired_bootstrap


def test_paired_bootstrap_by_hand():
    """Two rows, first right in both, second in one: 2 - 1 of 2 rows, so 0.5.

    The resamples have difference 0, 0.5, 0.5, 1, one quarter each: the interval at 95 % is (0, 1), and a half is
    0.5 away from 0.5.
    """
    result = paired_bootstrap(accuracy, [1, 0], [1, 1], [1, 0], num_resamples=2_000)
    assert result[:3] == (0.5, 0, 1)
    assert result.p_value == pytest.approx(0.5, abs=0.05)
    assert result.n == 2


def test_paired_bootstrap_counts_the_observed_once():
    """Every resample has difference 1, none is 1 away from it: (0 + 1) / (9 + 1)."""
    assert paired_bootstrap(accuracy, [1] * 5, [0] * 5, [1] * 5, num_resamples=9) == (1, 1, 1, 0.1, 5)


@pytest.mark.parametrize("seed", range(5))
def test_paired_bootstrap_counts_ties_although_accuracies_are_rounded(seed):
    """Numbers of right answers are exact, fractions of 30 are not."""
    rows = right_or_wrong(seed, num_rows=30)
    exact = paired_bootstrap(lambda p, y: np.count_nonzero(p == y), *rows, num_resamples=200)
    assert paired_bootstrap(accuracy, *rows, num_resamples=200).p_value == exact.p_value


def test_equal_predictions_have_p_1():
    _, labels = [0, 1, 1, 0], [0, 1, 0, 0]
    assert paired_bootstrap(accuracy, [0, 1, 1, 0], [0, 1, 1, 0], labels) == (0, 0, 0, 1, 4)


def test_one_row_has_no_interval():
    result = paired_bootstrap(accuracy, [1], [0], [1])
    assert (result.mean_difference, result.p_value, result.n) == (1, 1, 1)
    assert math.isnan(result.low)
    assert math.isnan(result.high)


@pytest.mark.parametrize("seed", range(3))
def test_for_accuracy_it_agrees_with_the_comparison_of_rows(seed):
    """The metric is then the mean of right - wrong over rows, for which the interval and the test have other ways."""
    first, second, labels = right_or_wrong(seed, num_rows=300)
    result = paired_bootstrap(accuracy, first, second, labels, num_resamples=2_000)
    rows = compare_paired(first == labels, second == labels)
    assert result.mean_difference == pytest.approx(rows.mean_difference)
    assert result[1:3] == pytest.approx(rows[1:3], abs=0.015)
    assert result.p_value == pytest.approx(rows.p_value, abs=0.06)
    assert result.p_value == pytest.approx(mcnemar(first == labels, second == labels).p_value, abs=0.12)


@pytest.mark.parametrize("metric", [f1, correlation], ids=["f1", "mcc"])
def test_paired_bootstrap_equals_the_loop_over_rows(metric):
    first, second, labels = right_or_wrong(0)
    result = paired_bootstrap(metric, first, second, labels, num_resamples=1_000)
    generator = np.random.default_rng(1)
    draws = []
    for _ in range(1_000):
        rows = generator.choice(100, 100)
        draws.append(metric(first[rows], labels[rows]) - metric(second[rows], labels[rows]))
    observed = metric(first, labels) - metric(second, labels)
    assert result.mean_difference == pytest.approx(observed)
    assert result[1:3] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.05)
    at_least_twice_or_reversed = [draw / observed >= 2 or draw / observed <= 0 for draw in draws]
    assert result.p_value == pytest.approx(np.mean(at_least_twice_or_reversed), abs=0.06)


def test_the_interval_of_a_correlation_agrees_with_scipys():
    generator = np.random.default_rng(0)
    labels = generator.normal(size=150)
    first, second = labels + generator.normal(size=150), labels + 1.5 * generator.normal(size=150)
    result = paired_bootstrap(correlation, first, second, labels, num_resamples=2_000, confidence=0.9)
    reference = stats.bootstrap(
        (first, second, labels),
        lambda a, b, y, axis: stats.pearsonr(a, y, axis=axis).statistic - stats.pearsonr(b, y, axis=axis).statistic,
        paired=True,
        method="percentile",
        confidence_level=0.9,
        n_resamples=2_000,
        random_state=5,
    )
    assert result[1:3] == pytest.approx(tuple(reference.confidence_interval), abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_paired_bootstrap_promises_for_any_predictions(seed):
    first, second, labels = right_or_wrong(seed)
    result = paired_bootstrap(accuracy, first, second, labels, num_resamples=500, seed=seed)
    assert 0 < result.p_value <= 1
    assert result.low <= result.mean_difference <= result.high
    assert paired_bootstrap(accuracy, first, second, labels, num_resamples=500, seed=seed) == result
    swapped = paired_bootstrap(accuracy, second, first, labels, num_resamples=500, seed=seed)
    assert swapped == pytest.approx((-result.mean_difference, -result.high, -result.low, result.p_value, 100))
    order = np.random.default_rng(seed).permutation(100)
    reordered = paired_bootstrap(accuracy, first[order], second[order], labels[order], num_resamples=500, seed=seed)
    assert reordered == pytest.approx(result, abs=0.1)
    wider = paired_bootstrap(accuracy, first, second, labels, num_resamples=500, seed=seed, confidence=0.99)
    assert wider.low <= result.low <= result.high <= wider.high
    assert paired_bootstrap(accuracy, first, second, labels, num_resamples=500, seed=seed + 1) != result


def test_paired_bootstrap_rejects_equal_models_in_about_5_percent():
    """And half of them at 0.5; 120 pairs of models have standard errors of 0.020 and 0.046."""
    p_values = np.array(
        [paired_bootstrap(accuracy, *right_or_wrong(seed), num_resamples=199).p_value for seed in range(120)]
    )
    assert 0.01 <= (p_values <= 0.05).mean() <= 0.12
    assert 0.36 <= (p_values <= 0.5).mean() <= 0.64


def test_a_clear_difference_is_found():
    first, _, labels = right_or_wrong(0, skill=0.9)
    second, _, _ = right_or_wrong(0, skill=0.5)
    assert paired_bootstrap(accuracy, first, second, labels).p_value <= 0.005
    assert compare_paired(np.linspace(0.9, 0.91, 8), np.linspace(0.8, 0.82, 8)).p_value == 2 / 2**8
    assert mcnemar(first == labels, second == labels).p_value < 0.001


def test_the_metric_gets_the_dtypes_that_were_given_and_the_same_rows_of_all_three():
    def metric(predictions, labels):
        assert predictions.dtype == np.int64
        assert labels.dtype == np.float32
        assert (predictions % 10 == labels).all()
        return predictions.mean()

    labels = np.arange(10, dtype=np.float32)
    assert paired_bootstrap(metric, np.arange(10, 20), np.arange(20, 30), labels, num_resamples=20)[
        :3
    ] == pytest.approx((-10,) * 3)


def test_a_metric_that_is_undefined_is_refused():
    def undefined_without_ones(predictions, labels):
        return predictions.mean() / labels.mean() if labels.any() else math.nan

    with pytest.raises(ValueError, match="undefined on all 2 rows"):
        paired_bootstrap(undefined_without_ones, [1, 1], [0, 1], [0, 0])
    with pytest.raises(ValueError, match=r"undefined on \d+ of 100 resamples"):
        paired_bootstrap(undefined_without_ones, [1, 1], [0, 1], [0, 1], num_resamples=100)


# What is refused by all


@pytest.mark.parametrize("function", [compare_paired, mcnemar])
def test_pairs_of_unequal_lengths_are_refused(function):
    with pytest.raises(ValueError, match=r"lengths differ \(first\w* 2, second\w* 1\)"):
        function([1, 1], [1])  # numpy would broadcast these


def test_rows_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="first_predictions 2, second_predictions 2, labels 1"):
        paired_bootstrap(accuracy, [1, 1], [1, 0], [1])


@pytest.mark.parametrize("function", [compare_paired, mcnemar, lambda a, b: paired_bootstrap(accuracy, a, b, b)])
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([], [], "expected a non-empty"),
        ([[1, 0]], [[1, 0]], "expected a non-empty"),
        ([1, math.nan], [1, 0], "first.* 1 of 2 values are undefined or infinite, the first at index 1"),
        ([1, 0], [None, 0], "second.* 1 of 2 values are undefined or infinite, the first at index 0"),
        (["a", "b"], ["a", "b"], "expected numbers"),
    ],
)
def test_input_that_is_no_list_of_finite_numbers_is_refused(function, first, second, message):
    with pytest.raises(ValueError, match=message):
        function(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 95}, "confidence is 95: expected a fraction"),
        ({"confidence": 0}, "confidence is 0"),
        ({"confidence": 1}, "confidence is 1"),
        ({"confidence": math.nan}, "confidence is nan"),
        ({"num_resamples": 0}, "num_resamples is 0: expected at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        compare([1, 2], **options)
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(accuracy, [1, 0], [1, 1], [1, 0], **options)
