from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dopaminergic.lab import statistics

ERRORS = np.random.default_rng(3).lognormal(size=37)
OTHERS = np.random.default_rng(4).lognormal(0.4, size=23)


def test_median_and_interquartile_mean_are_scipys() -> None:
    assert float(statistics.median(ERRORS)) == np.median(ERRORS)
    for n in range(1, 38):
        trimmed = stats.trim_mean(ERRORS[:n], 0.25)
        assert float(statistics.interquartile_mean(ERRORS[:n])) == pytest.approx(trimmed, rel=1e-12)


def test_an_error_that_is_not_finite_counts_as_the_worst() -> None:
    assert float(statistics.median([1.0, math.nan, 2.0])) == 2.0
    assert math.isinf(float(statistics.median([1.0, -math.inf, math.nan])))
    assert float(statistics.interquartile_mean([1.0, 2.0, 4.0, math.nan])) == 3.0
    assert math.isinf(float(statistics.interquartile_mean([1.0, math.nan, math.inf, 4.0])))


def test_median_passes_count_unsolved_runs_as_infinity() -> None:
    found = statistics.estimate([100, 200, 300, math.inf, math.inf])
    assert found.value == 300
    assert math.isinf(statistics.estimate([100, math.inf, math.inf]).value)
    assert math.isinf(statistics.estimate([100, math.inf, math.inf]).high)


def test_the_bootstrap_interval_of_the_mean_is_that_of_the_normal_theory() -> None:
    sample = np.random.default_rng(0).normal(5.0, 1.0, size=400)
    found = statistics.estimate(
        sample, statistic=lambda drawn: drawn.mean(axis=-1), resamples=20_000
    )
    half = 1.96 * sample.std() / math.sqrt(400)
    # A percentile of 20,000 replicates has a standard error of 1.3 % of the interval's half-width;
    # allow four.
    assert found.low == pytest.approx(sample.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(sample.mean() + half, abs=0.05 * half)


def test_the_interval_of_a_median_agrees_with_scipys_bootstrap() -> None:
    found = statistics.estimate(ERRORS, resamples=9999)
    theirs = stats.bootstrap(
        (ERRORS,),
        np.median,
        method="percentile",
        n_resamples=9999,
        rng=np.random.default_rng(1),
        vectorized=True,
    ).confidence_interval
    order = np.sort(ERRORS)
    for ours, other in ((found.low, theirs.low), (found.high, theirs.high)):
        assert abs(np.searchsorted(order, ours) - np.searchsorted(order, other)) <= 1


def test_the_bootstrap_is_stratified() -> None:
    # Each stratum is constant: only resampling across strata could change the mean of the whole.
    found = statistics.estimate([1.0] * 5, [3.0] * 5, statistic=lambda drawn: drawn.mean(axis=-1))
    assert (found.value, found.low, found.high, found.n) == (2.0, 2.0, 2.0, 10)


def test_the_bootstrap_repeats_itself_and_leaves_the_global_generator_alone() -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    first, second, other = (statistics.estimate(ERRORS, seed=seed) for seed in (0, 0, 1))
    assert first == second != other
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


@pytest.mark.parametrize("values", [[], [0.3]])
def test_one_run_leaves_the_interval_open(values: list[float]) -> None:
    found = statistics.estimate(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.n == len(values)


def test_probability_of_improvement_is_mann_and_whitneys() -> None:
    ours, theirs = np.round(ERRORS, 1), np.round(OTHERS, 1)
    assert np.intersect1d(ours, theirs).size  # the data have ties
    larger = stats.mannwhitneyu(theirs, ours).statistic / (len(ours) * len(theirs))
    found = statistics.probability_of_improvement((ours, theirs))
    assert found.value == pytest.approx(larger, rel=1e-12)
    assert found.low < found.value < found.high
    assert statistics.probability_of_improvement((theirs, ours)).value == pytest.approx(1 - larger)


def test_probability_of_improvement_in_closed_cases() -> None:
    assert statistics.probability_of_improvement(([1, 2], [3, 4])).value == 1
    assert statistics.probability_of_improvement(([1, 1], [1, 1])).value == 0.5
    assert (
        statistics.probability_of_improvement(([math.nan, 1], [math.nan, math.inf])).value == 0.75
    )
    assert statistics.probability_of_improvement(([1, 2], [3, 4]), ([3, 4], [1, 2])).value == 0.5
    assert math.isnan(statistics.probability_of_improvement(([1], [2])).low)


def test_probability_of_improvement_has_the_spread_of_a_bootstrap_by_hand() -> None:
    generator = np.random.default_rng(11)
    by_hand = []
    for _ in range(4000):
        ours, theirs = generator.choice(ERRORS, len(ERRORS)), generator.choice(OTHERS, len(OTHERS))
        by_hand.append(np.mean(ours[:, None] < theirs))
    low, high = np.quantile(by_hand, [0.025, 0.975])
    found = statistics.probability_of_improvement((ERRORS, OTHERS), resamples=4000)
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_the_performance_profile_weights_tasks_equally() -> None:
    profile = statistics.performance_profile(
        [[1.0, 2.0], [1.0, 1.0, 1.0, math.nan]], [0.5, 1.0, 2.0]
    )
    assert profile.tolist() == [0.0, (0.5 + 0.75) / 2, (1.0 + 0.75) / 2]


def test_paired_differences_match_seeds() -> None:
    found = statistics.paired_differences(
        {1: 1.0, 2: 5.0, 3: math.nan, 4: math.inf, 9: 0.0},
        {2: 4.0, 1: 3.0, 3: math.inf, 4: 1.0, 8: 0.0},
    )
    assert found.seeds == (1, 2, 3, 4)
    assert found.differences.tolist() == [-2.0, 1.0, 0.0, math.inf]
    assert found.share_better == (1 + 0.5) / 4
    assert found.median.value == 0.5
    assert math.isinf(found.median.high)


def test_wilsons_interval_is_scipys() -> None:
    for successes, n in ((0, 5), (3, 20), (20, 20), (250, 500)):
        theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
        found = statistics.wilson_interval(successes, n)
        assert found.value == successes / n
        assert found.low == pytest.approx(theirs.low, abs=1e-12)
        assert found.high == pytest.approx(theirs.high, abs=1e-12)
    with pytest.raises(ValueError, match=r"successes must lie in 0 \.\.\. n = 2, got 3"):
        statistics.wilson_interval(3, 2)


def test_the_spread_in_closed_form() -> None:
    assert statistics.spread([1.0, 2.0, 3.0, 4.0]) == (3.0 - 1.0) / 2.0
    assert math.isinf(statistics.spread([1.0, math.nan, math.nan, math.nan]))
    assert statistics.spread([0.0, 0.0, 0.0]) == 0.0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="confidence must lie in"):
        statistics.estimate([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="0 and 1 runs"):
        statistics.probability_of_improvement(([], [1.0]))
    with pytest.raises(ValueError, match="pairs: no task given"):
        statistics.probability_of_improvement()
    with pytest.raises(ValueError, match="strata: no task given"):
        statistics.performance_profile([], [1.0])
