"""Statistics of errors over seeds, for few runs and heavy tails.

Measured errors = median or interquartile mean + percentile bootstrap over seeds + probability of
improvement, after Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice".

Everywhere an error is a number to be small. One that is not finite (the run diverged) counts as the
worst possible, infinity, and is never dropped. The unit that is resampled is the run, that is, its
seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A statistic with its interval.

    Attributes:
        value: the statistic of the sample.
        low: lower end of the interval; NaN where one run or none leaves it open.
        high: upper end of the interval; NaN likewise.
        n: number of runs behind it (the smaller group's, where two groups are compared).
    """

    value: float
    low: float
    high: float
    n: int


class PairedDifferences(NamedTuple):
    """Differences first - second of runs that share a seed; negative where the first is better.

    Attributes:
        seeds: the seeds both have, ascending.
        differences: one per seed; 0 where both diverged, -inf or inf where one did.
        median: their median with its bootstrap interval.
        share_better: share of seeds on which the first has the lower error, ties counted half.
    """

    seeds: tuple[int, ...]
    differences: Array
    median: Estimate
    share_better: float


def as_errors(values: ArrayLike) -> Array:
    """Errors as float64 of the same shape.

    Every value that is not finite (None too) is replaced by infinity.
    """
    errors = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(errors), errors, np.inf)


def median(values: ArrayLike, axis: int = -1) -> Array:
    """Median along `axis`; NaN for no values."""
    errors = as_errors(values)
    if errors.shape[axis] == 0:
        return np.full(np.delete(errors.shape, axis), np.nan)
    return np.median(errors, axis=axis)


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Array:
    """Mean of the middle half along `axis`.

    floor(n / 4) values are cut at either end, for example two of ten (Agarwal et al. 2021).
    """
    errors = np.sort(as_errors(values), axis=axis)
    count = errors.shape[axis]
    if count == 0:
        return np.full(np.delete(errors.shape, axis), np.nan)
    cut = count // 4
    return np.take(errors, range(cut, count - cut), axis=axis).mean(axis=axis)


def interval(replicates: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates.

    Ends are replicates themselves, so infinities are allowed.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}; give .95 for 95 %")
    ordered = np.sort(np.asarray(replicates, dtype=np.float64))
    tail = (1 - confidence) / 2 * (len(ordered) - 1)
    return float(ordered[math.floor(tail)]), float(ordered[math.ceil(len(ordered) - 1 - tail)])


def estimate(
    *strata: ArrayLike,
    statistic: Callable[[Array], Array] = median,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """A statistic of all runs with its percentile bootstrap interval.

    Runs are resampled within each stratum.

    Args:
        *strata: errors of the runs, 1-d, one array per task (a single task is a single array).
        statistic: from errors (..., n) to (...), such as `median` or `interquartile_mean`; it sees
            all strata joined.
        confidence: share of the interval, in (0, 1).
        resamples: number of bootstrap replicates.
        seed: of the own generator; the same call gives the same interval.
    """
    return _estimate(
        [as_errors(stratum) for stratum in strata], statistic, confidence, resamples, seed
    )


def _estimate(
    groups: list[Array],
    statistic: Callable[[Array], Array],
    confidence: float,
    resamples: int,
    seed: int,
) -> Estimate:
    joined = np.concatenate(groups) if groups else np.empty(0)
    value = float(statistic(joined)) if joined.size else math.nan
    if joined.size < 2:
        return Estimate(value, math.nan, math.nan, joined.size)
    generator = np.random.default_rng(seed)
    drawn = [
        group[generator.integers(len(group), size=(resamples, len(group)))]
        for group in groups
        if len(group)
    ]
    return Estimate(
        value, *interval(statistic(np.concatenate(drawn, axis=1)), confidence), joined.size
    )


def performance_profile(strata: list[ArrayLike], thresholds: ArrayLike) -> Array:
    """Share of runs whose error is at most each threshold, tasks weighted equally.

    It has the shape of `thresholds`.

    Args:
        strata: errors of the runs, one 1-d array per task, on a common scale (divided by a
            reference, for example).
        thresholds: 1-d.
    """
    if not strata:
        raise ValueError(
            "strata: no task given; a performance profile needs the errors of at least one"
        )
    limits = np.asarray(thresholds, dtype=np.float64)
    return np.mean(
        [(as_errors(errors)[:, None] <= limits).mean(axis=0) for errors in strata], axis=0
    )


def probability_of_improvement(
    *pairs: tuple[ArrayLike, ArrayLike],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Probability that a run of the first has a lower error than a run of the second.

    Ties count half. It is Mann and Whitney's U / (n m), averaged over tasks (Agarwal et al. 2021,
    eq. 2). Its bootstrap resamples both groups of each task. Where every run of one beats every run
    of the other the interval shrinks to a point: look at n.

    Args:
        *pairs: (errors of the first, errors of the second), 1-d, one pair per task.
        confidence: share of the interval, in (0, 1).
        resamples: number of bootstrap replicates.
        seed: of the own generator.
    """
    if not pairs:
        raise ValueError("pairs: no task given; give (errors of the first, errors of the second)")
    generator = np.random.default_rng(seed)
    values = []
    replicates = []
    sizes = []
    for first, second in ((as_errors(first), as_errors(second)) for first, second in pairs):
        if not (first.size and second.size):
            raise ValueError(
                f"pairs: {first.size} and {second.size} runs on one task; both sides need at least "
                "one"
            )
        wins = (first[:, None] < second) + 0.5 * (first[:, None] == second)
        # A resample is how often each run was drawn, so that U of every resample is one bilinear
        # form.
        counts = [generator.multinomial(k, np.full(k, 1 / k), size=resamples) for k in wins.shape]
        values.append(wins.mean())
        replicates.append(np.sum((counts[0] @ wins) * counts[1], axis=1) / wins.size)
        sizes.append(min(wins.shape))
    if min(sizes) < 2:
        return Estimate(float(np.mean(values)), math.nan, math.nan, min(sizes))
    return Estimate(
        float(np.mean(values)), *interval(np.mean(replicates, axis=0), confidence), min(sizes)
    )


def paired_differences(
    first: Mapping[int, float], second: Mapping[int, float], *, seed: int = 0
) -> PairedDifferences:
    """Differences of the errors of two methods on the seeds that both have run.

    Args:
        first: error by seed.
        second: error by seed.
        seed: of the bootstrap's own generator.
    """
    seeds = tuple(sorted(set(first) & set(second)))
    ours, theirs = (as_errors([errors[each] for each in seeds]) for errors in (first, second))
    both = np.isinf(ours) & np.isinf(theirs)
    differences = np.where(both, 0.0, np.where(both, 0.0, ours) - np.where(both, 0.0, theirs))
    share = float(np.mean((differences < 0) + 0.5 * (differences == 0))) if seeds else math.nan
    return PairedDifferences(
        seeds, differences, _estimate([differences], _signed_median, 0.95, 2000, seed), share
    )


def _signed_median(differences: Array) -> Array:
    """Median along the last axis, where a win by infinity and a loss by infinity cancel."""
    with np.errstate(invalid="ignore"):
        middle = np.median(differences, axis=-1)
    return np.where(np.isnan(middle), 0.0, middle)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Share of successes with Wilson's score interval (1927).

    It is sound for few runs and for shares of 0 and 1.

    Raises:
        ValueError: unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0 ... n = {n}, got {successes}")
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), n)


def spread(values: ArrayLike) -> float:
    """Interquartile range over the median; infinity where a quartile is, NaN for no values."""
    errors = as_errors(values)
    if not errors.size:
        return math.nan
    low, middle, high = np.quantile(errors, [0.25, 0.5, 0.75], method="inverted_cdf")
    return (
        float((high - low) / middle)
        if np.isfinite(high) and middle > 0
        else (0.0 if high == low == 0 else math.inf)
    )
