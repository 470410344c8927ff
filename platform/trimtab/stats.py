"""Rates with intervals and paired comparisons. A rate over nothing is null, never 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

LEVEL = 0.95
NUM_RESAMPLES = 4_000


class Estimate(BaseModel):
    """A value with its 95 % interval over ``n`` scored cases; ``value`` is None where nothing was scored."""

    model_config = ConfigDict(frozen=True)
    value: float | None
    low: float | None
    high: float | None
    n: int
    num_clusters: int | None = None

    def text(self, digits: int = 3) -> str:
        """``0.123 [0.100, 0.150]``, or ``n/a`` where nothing was scored."""
        if self.value is None or self.low is None or self.high is None:
            return "n/a"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


EMPTY = Estimate(value=None, low=None, high=None, n=0)


def wilson(num_yes: int, n: int) -> Estimate:
    """Share of yes with its Wilson score interval (Wilson, 1927)."""
    from statsmodels.stats.proportion import proportion_confint

    if n == 0:
        return EMPTY
    low, high = proportion_confint(num_yes, n, alpha=1 - LEVEL, method="wilson")
    return Estimate(value=num_yes / n, low=float(low), high=float(high), n=n)


def clustered_mean(
    values: Sequence[float], clusters: Sequence[str], groups: Sequence[str] | None = None, seed: int = 0
) -> Estimate:
    """Mean with a bootstrap interval that resamples whole clusters (prompts), cases of one prompt being alike.

    Args:
        values: one number a case, shape ``[n]``.
        clusters: the cluster (prompt) of each case, shape ``[n]``.
        groups: where given, the mean is that of the groups' means (Corr_mean: of the k), shape ``[n]``.
    """
    from scipy.stats import bootstrap

    if not values:
        return EMPTY
    sums, counts = _by_cluster(values, clusters, groups or [""] * len(values))
    num_clusters = sums.shape[1]
    mean = float(_group_mean(*sums, *counts, axis=-1))
    if num_clusters == 1:
        return Estimate(value=mean, low=None, high=None, n=len(values), num_clusters=1)
    if np.ptp(values) == 0:
        return Estimate(value=mean, low=mean, high=mean, n=len(values), num_clusters=num_clusters)
    result = bootstrap(
        (*sums, *counts), _group_mean, paired=True, vectorized=True, n_resamples=NUM_RESAMPLES,
        confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = (float(bound) for bound in result.confidence_interval)
    return Estimate(value=mean, low=low, high=high, n=len(values), num_clusters=num_clusters)


def paired_difference(
    before: dict[str, float],
    after: dict[str, float],
    cluster_of: dict[str, str],
    group_of: dict[str, str] | None = None,
    seed: int = 0,
) -> Estimate:
    """Mean of ``after − before`` over the cases that both scored, as ``clustered_mean`` takes it."""
    shared = sorted(before.keys() & after.keys())
    groups = [group_of[i] for i in shared] if group_of else None
    return clustered_mean([after[i] - before[i] for i in shared], [cluster_of[i] for i in shared], groups, seed)


def _by_cluster(values: Sequence[float], clusters: Sequence[str], groups: Sequence[str]) -> tuple[Any, Any]:
    """Sums and counts by group and cluster, each of shape ``[groups, clusters]``."""
    names, column = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    kinds, row = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    shape = (len(kinds), len(names))
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (row, column), np.asarray(values, dtype=float))
    np.add.at(counts, (row, column), 1.0)
    return sums, counts


def _group_mean(*sums_and_counts: Any, axis: int = -1) -> Any:
    """Mean over groups of sum ÷ count over clusters; a group that a resample left empty is left out."""
    half = len(sums_and_counts) // 2
    sums = np.stack([part.sum(axis) for part in sums_and_counts[:half]])
    counts = np.stack([part.sum(axis) for part in sums_and_counts[half:]])
    filled = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=filled)
    return means.sum(0) / filled.sum(0)
