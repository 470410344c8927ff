"""Whether the 95 % intervals cover what they should: Wilson's exactly, those over prompts in 2,000 simulations each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import beta, binom, bootstrap, t

from trimtab.console import say
from trimtab.stats import LEVEL, Estimate, clustered_mean, paired_difference, wilson

RATES = tuple(round(tenths / 10, 1) for tenths in range(1, 10))
CORRELATIONS = (0.1, 0.3, 0.5)
"""Of the cases of one prompt, which are beta-binomial."""
NUM_CLUSTERS, MORE_CLUSTERS = 60, (120, 240)
PER_CLUSTER = 8
NUM_SIMULATIONS = 2_000
NUM_PAIRED = 10_000
"""Simulations of a difference: 2,000 would leave open on which side of 97 % the most cautious one is."""
WILSON_SIZES = range(60, 501)
FINE = np.linspace(0.1, 0.9, 801)
HARDEST = (0.1, 0.5)
"""The rate and the correlation with the most skewed prompts."""
DIFFERENCES = ((0.1, 0.1), (0.1, 0.2), (0.3, 0.5))
"""Rates of two models on the same prompts."""
Interval = Callable[[Any, int], tuple[float, float]]


def wilson_coverage(n: int, rates: Any) -> Any:
    """Exact coverage at each rate: the chance of the counts whose interval holds it."""
    intervals = [wilson(count, n) for count in range(n + 1)]
    low, high = (np.array([getattr(e, side) for e in intervals])[:, None] for side in ("low", "high"))
    holds = (low <= rates) & (rates <= high)
    return (binom.pmf(np.arange(n + 1)[:, None], n, rates) * holds).sum(0)


def cases(rate: float, correlation: float, num_clusters: int, uniform: Any, rng: np.random.Generator) -> Any:
    """0 or 1, shape ``[simulations, clusters, cases]``; equal ``uniform`` numbers give two models like prompts."""
    scale = 1 / correlation - 1
    chance = beta.ppf(uniform, rate * scale, (1 - rate) * scale)
    return rng.binomial(1, chance[..., None], (len(uniform), num_clusters, PER_CLUSTER)).astype(float)


def coverage(rate: float, correlation: float, num_clusters: int, interval: Interval) -> float:
    """Share of the simulations whose interval holds the rate."""
    rng = np.random.default_rng([round(100 * rate), round(100 * correlation), num_clusters])
    drawn = cases(rate, correlation, num_clusters, rng.random((NUM_SIMULATIONS, num_clusters)), rng)
    bounds = [interval(sample, number) for number, sample in enumerate(drawn)]
    return float(np.mean([low <= rate <= high for low, high in bounds]))


def ours(sample: Any, seed: int) -> tuple[float, float]:
    """The interval that every record of an evaluation holds."""
    return _bounds(clustered_mean(sample.ravel(), _prompts(len(sample)), bounds=(0, 1), seed=seed))


def percentile(sample: Any, seed: int) -> tuple[float, float]:
    """SciPy's percentile interval over prompts."""
    return _scipy(sample, seed, "percentile")


def bca(sample: Any, seed: int) -> tuple[float, float]:
    """SciPy's bias-corrected and accelerated interval over prompts."""
    return _scipy(sample, seed, "BCa")


def cluster_t(sample: Any, seed: int) -> tuple[float, float]:
    """The t interval of the prompts' means."""
    means = sample.mean(1)
    return tuple(t.interval(LEVEL, len(means) - 1, means.mean(), means.std(ddof=1) / len(means) ** 0.5))


def _scipy(sample: Any, seed: int, method: str) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    found = bootstrap((sample.mean(1),), np.mean, vectorized=True, n_resamples=3_999, method=method, rng=rng)
    return found.confidence_interval.low, found.confidence_interval.high


def difference_coverage(before: float, after: float, correlation: float) -> tuple[float, float]:
    """(coverage of the paired difference, share of p < 0.05) over the simulations, on ``NUM_CLUSTERS`` prompts."""
    rng = np.random.default_rng([round(100 * before), round(100 * after)])
    uniform = rng.random((NUM_PAIRED, NUM_CLUSTERS))
    sides = [cases(rate, correlation, NUM_CLUSTERS, uniform, rng) for rate in (before, after)]
    prompts = {str(number): prompt for number, prompt in enumerate(_prompts(NUM_CLUSTERS))}
    found = []
    for seed, pair in enumerate(zip(*sides, strict=True)):
        first, second = (dict(zip(prompts, side.ravel(), strict=True)) for side in pair)
        found.append(paired_difference(first, second, prompts, bounds=(-1, 1), seed=seed))
    holds = [low <= after - before <= high for low, high in map(_bounds, found)]
    return float(np.mean(holds)), float(np.mean([estimate.p < 0.05 for estimate in found]))


def _prompts(num_clusters: int) -> list[str]:
    return [f"{number:04d}" for number in range(num_clusters) for _ in range(PER_CLUSTER)]


def _bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """The least and the greatest coverage, of all intervals and of each kind."""
    both = [wilson_coverage(n, np.concatenate([RATES, FINE])) for n in WILSON_SIZES]
    exact, fine = [found[: len(RATES)] for found in both], [found[len(RATES) :] for found in both]
    say(f"  Wilson, exact: {_range(exact)} at rates 0.1 … 0.9, {_range(fine)} on a fine grid")
    cells = [(rate, correlation, NUM_CLUSTERS) for correlation in CORRELATIONS for rate in RATES]
    cells += [(*HARDEST, num_clusters) for num_clusters in MORE_CLUSTERS]
    means = {}
    for cell in cells:
        means[cell] = coverage(*cell, ours)
        say(f"  mean over prompts: rate {cell[0]}, correlation {cell[1]}, {cell[2]} prompts: {means[cell]:.4f}")
    differences = {pair: difference_coverage(*pair, HARDEST[1]) for pair in DIFFERENCES}
    say(f"  differences: {differences}")
    peers = {peer.__name__: coverage(*HARDEST, NUM_CLUSTERS, peer) for peer in (percentile, bca, cluster_t)}
    say(f"  others at rate {HARDEST[0]}, correlation {HARDEST[1]}: {peers}")
    every = [*np.concatenate(exact), *means.values(), *(held for held, _ in differences.values())]
    figures = {
        "coverage_min": float(min(every)), "coverage_max": float(max(every)),
        "wilson": _range(exact), "wilson_fine_grid": _range(fine),
        "wilson_share_below_93_percent": {"rates": _share_below(exact), "fine_grid": _share_below(fine)},
        "cluster_bootstrap": _range([[value] for value in means.values()]),
        "paired_difference": {f"{a} -> {b}": held for (a, b), (held, _) in differences.items()},
        "p_below_0.05_without_a_difference": differences[0.1, 0.1][1],
        "others_at_the_hardest": peers | {"ours": means[(*HARDEST, NUM_CLUSTERS)]},
    }  # fmt: skip
    settings = {
        "simulations": NUM_SIMULATIONS, "monte_carlo_error": (LEVEL * (1 - LEVEL) / NUM_SIMULATIONS) ** 0.5,
        "simulations_of_differences": NUM_PAIRED,
        "rates": RATES, "correlations": CORRELATIONS, "prompts": [NUM_CLUSTERS, *MORE_CLUSTERS],
        "cases_per_prompt": PER_CLUSTER, "wilson_sizes": [WILSON_SIZES[0], WILSON_SIZES[-1]],
        "coverage": {" ".join(map(str, cell)): value for cell, value in means.items()},
    }  # fmt: skip
    return figures, settings


def _range(found: Any) -> list[float]:
    values = np.concatenate([np.asarray(part) for part in found])
    return [round(float(values.min()), 4), round(float(values.max()), 4)]


def _share_below(found: Any, limit: float = 0.93) -> float:
    return float(np.mean(np.array(found) < limit))
