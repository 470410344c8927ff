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


def clustered_mean(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Estimate:
    """Mean with a bootstrap interval that resamples whole clusters (prompts), cases of one prompt being alike.

    Args:
        values: one number a case, shape ``[n]``.
        clusters: the cluster (prompt) of each case, shape ``[n]``.
    """
    from scipy.stats import bootstrap

    if not values:
        return EMPTY
    sums, counts = _by_cluster(values, clusters)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Estimate(value=mean, low=None, high=None, n=len(values), num_clusters=1)
    if np.ptp(sums / counts) == 0:
        return Estimate(value=mean, low=mean, high=mean, n=len(values), num_clusters=len(sums))
    result = bootstrap(
        (sums, counts), lambda s, c, axis: s.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        n_resamples=NUM_RESAMPLES, confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = (float(bound) for bound in result.confidence_interval)
    return Estimate(value=mean, low=low, high=high, n=len(values), num_clusters=len(sums))


def paired_difference(
    before: dict[str, float], after: dict[str, float], cluster_of: dict[str, str], seed: int = 0
) -> Estimate:
    """Mean of ``after − before`` over the cases that both scored, with an interval clustered by prompt."""
    shared = sorted(before.keys() & after.keys())
    return clustered_mean([after[i] - before[i] for i in shared], [cluster_of[i] for i in shared], seed)


def _by_cluster(values: Sequence[float], clusters: Sequence[str]) -> tuple[Any, Any]:
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    return np.bincount(index, weights=np.asarray(values, dtype=float)), np.bincount(index).astype(float)
