"""Rates and means with intervals, paired comparisons, and what a measurement of this size could have shown.

A rate of independent cases has its Wilson interval. Cases of one prompt are alike, so a mean over them resamples whole
prompts. Its interval is the studentized one: the estimate ± q standard errors, where q is the 95th percentile of
|resample − estimate| ÷ the resample's own standard error (Cameron, Gelbach & Miller, 2008): with 60 prompts and rates
near 0 or 1 a percentile interval covers too rarely (``make bench NAME=evaluation_intervals``). The p value comes from
the same resamples, so p < 0.05 exactly where the interval leaves 0 out. A rate over nothing is null, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

LEVEL = 0.95
POWER = 0.8
NUM_RESAMPLES = 3_999  # with the sample itself 4,000, of which 5 % is a whole number
RESAMPLED_CELLS = 1 << 16  # of one batch of resamples, which then stays in the processor's cache
NO_SPREAD = 1e-12

Bounds = tuple[float, float]


class Estimate(BaseModel):
    """A value with its 95 % interval over ``n`` scored cases; ``value`` is None where nothing was scored."""

    model_config = ConfigDict(frozen=True)
    value: float | None
    low: float | None
    high: float | None
    n: int
    num_clusters: int | None = None
    standard_error: float | None = None
    """Of a mean over clusters; None for a rate of independent cases."""
    p: float | None = None
    """Of a difference: two-sided, for there being none."""

    def text(self, digits: int = 3, signed: bool = False) -> str:
        """``0.123 [0.100, 0.150]``, with signs ``+0.123 [+0.100, +0.150]``.

        ``n/a`` stands where nothing was scored, ``0.123 [n/a]`` where there is a value and nothing tells its interval.
        """
        if self.value is None:
            return "n/a"
        form = f"{'+' if signed else ''}.{digits}f"
        interval = "n/a" if self.low is None or self.high is None else f"{self.low:{form}}, {self.high:{form}}"
        return f"{self.value:{form}} [{interval}]"

    def p_text(self) -> str:
        """``p = 0.012``, ``p < 0.001``, or nothing where there is none."""
        if self.p is None:
            return ""
        return "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in another unit: everything but n, the clusters and p times a positive factor."""
        names = ("value", "low", "high", "standard_error")
        return self.model_copy(
            update={name: None if (v := getattr(self, name)) is None else factor * v for name in names}
        )


EMPTY = Estimate(value=None, low=None, high=None, n=0)


def wilson(num_yes: int, n: int) -> Estimate:
    """Share of yes with its Wilson score interval (Wilson, 1927)."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return EMPTY
    low, high = proportion_confint(num_yes, n, alpha=1 - LEVEL, method="wilson")
    return Estimate(value=num_yes / n, low=float(low), high=float(high), n=n)


def with_standard_error(value: float, error: float, n: int, *, bounds: Bounds | None = None) -> Estimate:
    """A mean of ``n`` independent cases with a standard error that somebody else computed, and its t interval.

    Without spread, or of one case, there is no telling, and so no interval.
    """
    if error <= NO_SPREAD or n < 2:
        return Estimate(value=value, low=None, high=None, n=n, num_clusters=n)
    low, high, _ = _t_interval(value, error, n)
    least, most = bounds or (-np.inf, np.inf)
    return Estimate(value=value, low=max(low, least), high=min(high, most), n=n, num_clusters=n, standard_error=error)


def clustered_mean(
    values: Sequence[float],
    clusters: Sequence[str],
    groups: Sequence[str] | None = None,
    *,
    bounds: Bounds | None = None,
    seed: int = 0,
) -> Estimate:
    """Mean with an interval that resamples whole clusters (prompts), cases of one prompt being alike.

    Args:
        values: one number a case, shape ``[n]``.
        clusters: the cluster (prompt) of each case, shape ``[n]``.
        groups: where given, the mean is that of the groups' means (Corr_mean: of the k), shape ``[n]``.
        bounds: the least and the most that a value can be, where there is such a thing; the interval stays within.
        seed: of the resampling.
    """
    return _clustered(values, clusters, groups, bounds, seed).model_copy(update={"p": None})


def paired_difference(
    before: Mapping[str, float],
    after: Mapping[str, float],
    cluster_of: Mapping[str, str],
    group_of: Mapping[str, str] | None = None,
    *,
    bounds: Bounds | None = None,
    seed: int = 0,
) -> Estimate:
    """Mean of ``after − before`` over the cases that both scored, as ``clustered_mean`` takes it, with its p value.

    Args:
        bounds: the least and the most that a difference can be: (−1, 1) for shares.
    """
    shared = sorted(before.keys() & after.keys())
    groups = [group_of[i] for i in shared] if group_of else None
    return _clustered([after[i] - before[i] for i in shared], [cluster_of[i] for i in shared], groups, bounds, seed)


def minimum_detectable_effect(estimate: Estimate) -> float | None:
    """The smallest true difference that a measurement like this one shows four times in five (two-sided, 5 %).

    Of a mean or a difference over clusters: from its standard error and clusters, by the t test's power. Of a rate:
    the difference from the rate of as many other cases, by Cohen's h. None where nothing tells, or nothing would do.
    """
    if estimate.value is None:
        return None
    if estimate.num_clusters is None:
        return _detectable_rate(estimate.value, estimate.n)
    if not estimate.standard_error or estimate.num_clusters < 3:
        return None
    return _detectable_mean(estimate.standard_error, estimate.num_clusters)


def _detectable_rate(rate: float, n: int) -> float | None:
    from statsmodels.stats.power import NormalIndPower

    h = float(NormalIndPower().solve_power(nobs1=n, alpha=1 - LEVEL, power=POWER, ratio=1.0))
    towards_half = np.arcsin(np.sqrt(min(rate, 1 - rate))) + h / 2
    return None if towards_half > np.pi / 2 else float(np.sin(towards_half) ** 2 - min(rate, 1 - rate))


def _detectable_mean(error: float, num_clusters: int) -> float:
    from statsmodels.stats.power import TTestPower

    d = float(TTestPower().solve_power(nobs=num_clusters, alpha=1 - LEVEL, power=POWER))
    return d * error * float(np.sqrt(num_clusters))


def _clustered(
    values: Sequence[float], clusters: Sequence[str], groups: Sequence[str] | None, bounds: Bounds | None, seed: int
) -> Estimate:
    if len(values) == 0:
        return EMPTY
    sums, counts = _by_cluster(values, clusters, groups or [""] * len(values))
    num = sums.shape[1]
    if num == 1:
        mean = float(_group_means(np.ones((1, 1)), sums, counts)[1][0])
        return Estimate(value=mean, low=None, high=None, n=len(values), num_clusters=1)
    mean, error = (float(part[0]) for part in _mean_and_error(np.ones((1, num)), sums, counts))
    low, high, p = _interval(mean, error, sums, counts, bounds, seed)
    return Estimate(value=mean, low=low, high=high, n=len(values), num_clusters=num, standard_error=error, p=p)


def _interval(
    mean: float, error: float, sums: Any, counts: Any, bounds: Bounds | None, seed: int
) -> tuple[float, float, float]:
    """(low, high, p): studentized by resampling; where too many resamples show no spread for that, the wider of two."""
    distances = _studentized(mean, sums, counts, seed) if error > NO_SPREAD else np.full(NUM_RESAMPLES, np.inf)
    above = round((1 - LEVEL) * (NUM_RESAMPLES + 1)) - 1
    radius = float(distances[-above])
    if np.isfinite(radius):
        num_further = int(np.count_nonzero(distances >= abs(mean) / error * (1 - 1e-9)))
        low, high, p = mean - radius * error, mean + radius * error, (1 + num_further) / (NUM_RESAMPLES + 1)
    else:
        found = [_t_interval(mean, error, sums.shape[1])]
        found += [_without_spread(mean, sums.shape[1], bounds)] if bounds else []
        low, high, p = min(one[0] for one in found), max(one[1] for one in found), max(one[2] for one in found)
    if p >= 1 - LEVEL - NO_SPREAD:  # what rounding left on the wrong side of 0
        low, high = min(low, 0.0), max(high, 0.0)
    least, most = bounds or (-np.inf, np.inf)
    return max(low, least), min(high, most), p


def _studentized(mean: float, sums: Any, counts: Any, seed: int) -> Any:
    """|resample − mean| ÷ its standard error, for each resample, ascending; infinite where one shows no spread.

    SciPy's ``bootstrap`` has no such interval, and a resample's standard error has to come from its own clusters.
    """
    rng, step = np.random.default_rng(seed), max(1, RESAMPLED_CELLS // sums.shape[1])
    sizes = [min(step, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, step)]
    means, errors = np.concatenate([_resampled(size, rng, sums, counts) for size in sizes], axis=1)
    endless = np.full(NUM_RESAMPLES, np.inf)
    return np.sort(np.divide(np.abs(means - mean), errors, out=endless, where=errors > NO_SPREAD))


def _resampled(size: int, rng: np.random.Generator, sums: Any, counts: Any) -> Any:
    """Mean and standard error of ``size`` resamples of the clusters, shape ``[2, size]``."""
    num = sums.shape[1]
    places = rng.integers(num, size=(size, num)) + num * np.arange(size)[:, None]
    weights = np.bincount(places.ravel(), minlength=size * num).reshape(size, num)
    return np.stack(_mean_and_error(weights.astype(float), sums, counts))


def _mean_and_error(weights: Any, sums: Any, counts: Any) -> tuple[Any, Any]:
    """Mean over groups of sum ÷ count, and its cluster-robust standard error (linearised), each ``[resamples]``.

    Args:
        weights: how often a resample holds a cluster, shape ``[resamples, clusters]``.
        sums: shape ``[groups, clusters]``, and ``counts`` alike.
    """
    scale, mean, means = _group_means(weights, sums, counts)
    influence = scale @ sums - (scale * means) @ counts
    num = sums.shape[1]
    squares = np.einsum("rc,rc,rc->r", weights, influence, influence)
    return mean, np.sqrt(squares * num / (num - 1))


def _group_means(weights: Any, sums: Any, counts: Any) -> tuple[Any, Any, Any]:
    """(a case's weight by group, the mean, the groups' means); a group that a resample left empty is left out."""
    totals = weights @ counts.T
    filled = totals > 0
    share = filled / filled.sum(1, keepdims=True)
    means = np.divide(weights @ sums.T, totals, out=np.zeros_like(totals), where=filled)
    scale = np.divide(share, totals, out=np.zeros_like(totals), where=filled)
    return scale, (share * means).sum(1), means


def _without_spread(mean: float, num_clusters: int, bounds: Bounds) -> tuple[float, float, float]:
    """As if all clusters agreed: none of them was unlike, so Wilson's bound is the share of prompts that may be.

    Those could lie anywhere within the bounds. For a rate of 0 or 1 this is Wilson's interval, a prompt being a case.
    """
    from scipy.stats import norm

    unlike = wilson(0, num_clusters).high
    assert unlike is not None
    least, most = bounds
    far = most if mean < 0 else -least
    z = np.sqrt(num_clusters * abs(mean) / far) if far > 0 else np.inf
    return mean - unlike * (mean - least), mean + unlike * (most - mean), 2 * float(norm.sf(z))


def _t_interval(mean: float, error: float, num_clusters: int) -> tuple[float, float, float]:
    from scipy.stats import t

    radius = float(t.ppf((1 + LEVEL) / 2, num_clusters - 1)) * error
    distance = abs(mean) / error if error > NO_SPREAD else (np.inf if mean else 0.0)
    return mean - radius, mean + radius, 2 * float(t.sf(distance, num_clusters - 1))


def _by_cluster(values: Sequence[float], clusters: Sequence[str], groups: Sequence[str]) -> tuple[Any, Any]:
    """Sums and counts by group and cluster, each of shape ``[groups, clusters]``."""
    names, column = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    kinds, row = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    shape = (len(kinds), len(names))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (row, column), np.asarray(values, dtype=float))
    np.add.at(counts, (row, column), 1.0)
    return sums, counts
