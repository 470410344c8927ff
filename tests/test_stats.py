"""Intervals: known values, nulls where nothing was scored, clusters counted as one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.stats import EMPTY, Estimate, clustered_mean, paired_difference, wilson


def test_wilson_interval_of_25_in_26_is_the_published_one() -> None:
    estimate = wilson(25, 26)
    assert estimate.value == pytest.approx(25 / 26)
    assert (estimate.low, estimate.high) == (pytest.approx(0.811, abs=5e-4), pytest.approx(0.993, abs=5e-4))
    assert estimate.n == 26


@given(n=st.integers(1, 500), share=st.floats(0, 1))
def test_wilson_agrees_with_its_formula(n: int, share: float) -> None:
    yes, z = round(share * n), 1.959963984540054
    p, scale = yes / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / scale, z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    estimate = wilson(yes, n)
    assert estimate.low == pytest.approx(max(0, middle - half), abs=1e-9)
    assert estimate.high == pytest.approx(min(1, middle + half), abs=1e-9)


def test_nothing_scored_is_null_and_never_zero() -> None:
    for estimate in (wilson(0, 0), clustered_mean([], []), paired_difference({"a": 1.0}, {"b": 1.0}, {"a": "p"})):
        assert estimate == EMPTY
        assert (estimate.value, estimate.low, estimate.high, estimate.n) == (None, None, None, 0)
        assert estimate.text() == "n/a"


def test_mean_is_over_cases_and_counts_both() -> None:
    estimate = clustered_mean([1, 1, 1, 0], ["p", "p", "p", "q"])
    assert (estimate.value, estimate.n, estimate.num_clusters) == (0.75, 4, 2)


def test_equal_cases_of_a_cluster_widen_the_interval() -> None:
    values = [float(number % 2) for number in range(40) for _ in range(8)]
    clustered = clustered_mean(values, [str(place // 8) for place in range(len(values))])
    naive = clustered_mean(values, [str(place) for place in range(len(values))])
    assert clustered.value == naive.value == 0.5
    width = {name: e.high - e.low for name, e in (("clustered", clustered), ("naive", naive)) if e.high and e.low}
    assert width["clustered"] / width["naive"] == pytest.approx(8**0.5, rel=0.15)


def test_bootstrap_interval_has_the_normal_width() -> None:
    values = np.random.default_rng(3).normal(size=400)
    estimate = clustered_mean(list(values), [str(number) for number in range(400)])
    half = 1.96 * values.std() / 400**0.5
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.02)


@settings(max_examples=20)
@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 1)), min_size=1, max_size=30))
def test_estimates_are_repeatable_and_hold_the_mean(cases: list[tuple[str, float]]) -> None:
    clusters, values = [name for name, _ in cases], [value for _, value in cases]
    estimate = clustered_mean(values, clusters, seed=1)
    assert estimate == clustered_mean(values, clusters, seed=1)
    assert estimate.value == pytest.approx(np.mean(values))
    if estimate.low is not None and estimate.high is not None:
        assert estimate.low - 1e-9 <= np.mean(values) <= estimate.high + 1e-9 or len(set(clusters)) < 4


def test_one_cluster_has_no_interval() -> None:
    estimate = clustered_mean([0.0, 1.0], ["p", "p"])
    assert (estimate.value, estimate.low, estimate.high, estimate.num_clusters) == (0.5, None, None, 1)


def test_identical_runs_differ_by_exactly_nothing() -> None:
    run = {f"case{number}": float(number % 3 == 0) for number in range(30)}
    estimate = paired_difference(run, dict(run), {case: case[-1] for case in run})
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.0, 0.0, 0.0, 30)


def test_difference_is_after_minus_before_over_shared_cases() -> None:
    before = {"a": 0.0, "b": 0.0, "only before": 1.0}
    after = {"b": 1.0, "a": 0.5, "only after": 0.0}
    estimate = paired_difference(before, after, {"a": "p", "b": "q", "only before": "p"})
    assert (estimate.value, estimate.n, estimate.num_clusters) == (0.75, 2, 2)


def test_pairing_is_tighter_than_comparing_two_means() -> None:
    noise = np.random.default_rng(0).normal(size=60)
    before = {str(number): float(value) for number, value in enumerate(noise)}
    after = {case: value + 0.1 for case, value in before.items()}
    estimate = paired_difference(before, after, {case: case for case in before})
    assert estimate.value == pytest.approx(0.1)
    assert estimate.low == pytest.approx(0.1, abs=1e-6)


def test_text_shows_value_and_interval() -> None:
    assert Estimate(value=0.5, low=0.25, high=0.75, n=4).text(2) == "0.50 [0.25, 0.75]"
