"""Intervals: known values, nulls where nothing was scored, clusters counted as one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.stats import (
    EMPTY,
    Estimate,
    clustered_mean,
    minimum_detectable_effect,
    paired_difference,
    wilson,
    with_standard_error,
)

Cases = list[tuple[str, str, float]]
some_cases = st.lists(
    st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from("xy"), st.sampled_from([-1.0, 0.0, 0.5, 1.0])),
    min_size=1, max_size=60,
)  # fmt: skip


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


def test_error_of_somebody_else_gives_the_t_interval_within_its_bounds() -> None:
    from scipy.stats import t

    estimate = with_standard_error(0.4, 0.1, 10)
    assert estimate.low == pytest.approx(0.4 - t.ppf(0.975, 9) * 0.1)
    assert estimate.high == pytest.approx(0.4 + t.ppf(0.975, 9) * 0.1)
    assert (estimate.n, estimate.num_clusters, estimate.standard_error) == (10, 10, 0.1)
    assert with_standard_error(0.4, 0.5, 10, bounds=(0, 1)).low == 0
    for error, n in ((0.0, 10), (0.1, 1)):
        unknown = with_standard_error(12.5, error, n)
        assert (unknown.low, unknown.text(), minimum_detectable_effect(unknown)) == (None, "12.500 [n/a]", None)


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


def test_identical_runs_show_no_difference_and_how_large_it_may_be() -> None:
    run = {f"case{number}": float(number % 3 == 0) for number in range(30)}
    cluster_of = {case: case[-1] for case in run}
    exact = paired_difference(run, dict(run), cluster_of)
    assert (exact.value, exact.low, exact.high, exact.n, exact.p) == (0.0, 0.0, 0.0, 30, 1.0)
    shares = paired_difference(run, dict(run), cluster_of, bounds=(-1, 1))
    assert (shares.value, shares.high, shares.p) == (0.0, wilson(0, 10).high, 1.0)
    assert shares.low == -wilson(0, 10).high


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
    assert estimate.p is not None
    assert estimate.p < 0.001


def test_text_shows_value_and_interval() -> None:
    estimate = Estimate(value=0.5, low=-0.25, high=0.75, n=4, p=0.0123)
    assert estimate.text(2) == "0.50 [-0.25, 0.75]"
    assert estimate.text(signed=True) == "+0.500 [-0.250, +0.750]"
    assert estimate.p_text() == "p = 0.012"
    assert [estimate.model_copy(update={"p": p}).p_text() for p in (None, 0.00025)] == ["", "p < 0.001"]


def _difference(cases: Cases, bounds: tuple[float, float] | None = (-1, 1)) -> Estimate:
    """The difference of two runs whose cases differ by the given numbers."""
    names = [f"{number:02d}" for number in range(len(cases))]
    after = {name: value for name, (_, _, value) in zip(names, cases, strict=True)}
    cluster_of = {name: cluster for name, (cluster, _, _) in zip(names, cases, strict=True)}
    group_of = {name: group for name, (_, group, _) in zip(names, cases, strict=True)}
    return paired_difference(dict.fromkeys(names, 0.0), after, cluster_of, group_of, bounds=bounds)


@settings(max_examples=60)
@given(some_cases)
def test_p_is_small_exactly_where_the_interval_leaves_zero_out(cases: Cases) -> None:
    for bounds in ((-1.0, 1.0), None):
        found = _difference(cases, bounds)
        if found.low is None or found.high is None or found.p is None:
            assert (found.low, found.high, found.p, found.num_clusters) == (None, None, None, 1)
            continue
        assert 0 <= found.p <= 1
        assert (found.p < 0.05) is not (found.low <= 0 <= found.high)


@settings(max_examples=20)
@given(some_cases)
def test_the_other_way_round_is_the_mirror_image(cases: Cases) -> None:
    there, back = _difference(cases), _difference([(cluster, group, -value) for cluster, group, value in cases])
    assert there.p == back.p
    for one, other in ((there.low, back.high), (there.high, back.low), (there.value, back.value)):
        assert one == other == None or one == pytest.approx(-(other or 0.0), abs=1e-9)  # noqa: E711


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abcdefghi"), st.booleans()), min_size=2, max_size=60))
def test_interval_of_a_share_stays_between_0_and_1_and_holds_it(cases: list[tuple[str, bool]]) -> None:
    found = clustered_mean([float(yes) for _, yes in cases], [name for name, _ in cases], bounds=(0, 1))
    assert found.p is None
    if found.low is not None and found.high is not None and found.value is not None:
        assert 0 <= found.low <= found.value + 1e-12
        assert found.value - 1e-12 <= found.high <= 1


def _correlated(rate: float, num_clusters: int, seed: int) -> tuple[list[float], list[str]]:
    """Eight cases a cluster, beta-binomial with correlation 0.5."""
    rng = np.random.default_rng(seed)
    values = rng.binomial(1, rng.beta(rate, 1 - rate, num_clusters)[:, None], (num_clusters, 8)).ravel()
    return [float(value) for value in values], [f"{number // 8:03d}" for number in range(values.size)]


def test_standard_error_is_the_cluster_robust_one_of_a_regression() -> None:
    from statsmodels.regression.linear_model import OLS

    values, clusters = _correlated(0.3, 30, seed=5)
    keep = np.random.default_rng(1).random(len(values)) < 0.8  # unequal clusters and groups
    values = [value for value, kept in zip(values, keep, strict=True) if kept]
    clusters = [cluster for cluster, kept in zip(clusters, keep, strict=True) if kept]
    groups = [str(number % 3) for number in range(len(values))]
    found = clustered_mean(values, clusters, groups)
    dummies = np.array([[float(group == name) for name in "012"] for group in groups])
    covariance = {"groups": np.unique(clusters, return_inverse=True)[1], "use_correction": False}
    expected = OLS(values, dummies).fit(cov_type="cluster", cov_kwds=covariance).t_test([1 / 3, 1 / 3, 1 / 3])
    assert found.value == pytest.approx(expected.effect[0])
    assert found.num_clusters is not None
    scale = (found.num_clusters / (found.num_clusters - 1)) ** 0.5
    assert found.standard_error == pytest.approx(scale * expected.sd[0, 0])


def test_skewed_prompts_widen_the_interval_beyond_the_normal_one() -> None:
    values, clusters = _correlated(0.1, 60, seed=2)
    found = clustered_mean(values, clusters, bounds=(0, 1))
    assert found.value is not None
    assert found.high is not None
    assert found.standard_error is not None
    assert found.high > found.value + 2.1 * found.standard_error


@pytest.mark.slow
def test_interval_covers_where_a_percentile_interval_does_not() -> None:
    from scipy.stats import bootstrap

    held = {"ours": 0, "percentile": 0}
    for seed in range(400):
        values, clusters = _correlated(0.1, 60, seed)
        found = clustered_mean(values, clusters, bounds=(0, 1), seed=seed)
        assert found.low is not None
        assert found.high is not None
        held["ours"] += found.low <= 0.1 <= found.high
        means = np.reshape(values, (60, 8)).mean(1)
        low, high = bootstrap((means,), np.mean, method="percentile", n_resamples=999, rng=seed).confidence_interval
        held["percentile"] += low <= 0.1 <= high
    assert held["ours"] / 400 > 0.925
    assert held["percentile"] < held["ours"]


def test_share_of_0_or_1_has_wilsons_interval_a_prompt_being_a_case() -> None:
    clusters = [str(number // 8) for number in range(48 * 8)]
    none = clustered_mean([0.0] * len(clusters), clusters, bounds=(0, 1))
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(wilson(0, 48).high)
    every = clustered_mean([1.0] * len(clusters), clusters, bounds=(0, 1))
    assert (every.value, every.high) == (1.0, 1.0)
    assert every.low == pytest.approx(wilson(48, 48).low)


def test_one_unlike_case_does_not_make_the_interval_narrow() -> None:
    clusters = [str(number // 8) for number in range(48 * 8)]
    found = clustered_mean([1.0, *[0.0] * (len(clusters) - 1)], clusters, bounds=(0, 1))
    assert found.high is not None
    assert found.high > (wilson(0, 48).high or 1)


def test_few_prompts_that_differ_have_no_narrower_interval_than_the_t_tests() -> None:
    from scipy.stats import ttest_1samp

    values = [1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0]
    found = _difference([(str(number), "x", value) for number, value in enumerate(values)])
    plain = ttest_1samp(values, 0)
    low, high = plain.confidence_interval()
    assert found.low is not None
    assert found.high is not None
    assert found.p is not None
    assert found.low <= low
    assert found.high == min(1.0, high)
    assert found.p >= plain.pvalue


@pytest.mark.parametrize(("num_prompts", "shown"), [(3, False), (4, True), (26, True)])
def test_change_of_every_prompt_counts_from_four_prompts_on(num_prompts: int, shown: bool) -> None:
    found = _difference([(str(number), "x", 1.0) for number in range(num_prompts)])
    assert found.value == found.high == 1.0
    assert found.low is not None
    assert found.p is not None
    assert (found.low > 0) is (found.p < 0.05) is shown


def test_nothing_is_said_of_one_prompt() -> None:
    assert _difference([("a", "x", 1.0), ("a", "y", 0.5)]).p is None


def test_scaling_scales_value_bounds_and_error_and_nothing_else() -> None:
    mean = Estimate(value=0.4, low=0.3, high=0.5, n=20, num_clusters=10, standard_error=0.05, p=0.2)
    twice = Estimate(value=0.8, low=0.6, high=1.0, n=20, num_clusters=10, standard_error=0.1, p=0.2)
    assert mean.scaled(2) == twice
    assert EMPTY.scaled(2) == EMPTY


@pytest.mark.parametrize("num_clusters", [3, 12, 60, 500])
def test_difference_that_is_detectable_is_found_four_times_in_five(num_clusters: int) -> None:
    from scipy.stats import nct, t

    least = minimum_detectable_effect(
        Estimate(value=0.1, low=0, high=0.2, n=99, num_clusters=num_clusters, standard_error=0.05)
    )
    assert least is not None
    free, limit = num_clusters - 1, t.ppf(0.975, num_clusters - 1)
    power = nct.sf(limit, free, least / 0.05) + nct.cdf(-limit, free, least / 0.05)
    assert power == pytest.approx(0.8, abs=1e-6)


def test_detectable_difference_of_rates_is_cohens() -> None:
    """Cohen (1988): about 388 cases a side show 0.5 against 0.6 with power 0.8."""
    assert minimum_detectable_effect(wilson(194, 388)) == pytest.approx(0.1, abs=1e-3)
    assert minimum_detectable_effect(wilson(10, 100)) == pytest.approx(minimum_detectable_effect(wilson(90, 100)))


@pytest.mark.parametrize(
    "estimate",
    [EMPTY, wilson(1, 2), Estimate(value=0.0, low=0, high=0, n=9, num_clusters=9, standard_error=0.0),
     Estimate(value=0.5, low=None, high=None, n=9, num_clusters=1)],
)  # fmt: skip
def test_nothing_is_detectable_where_nothing_tells(estimate: Estimate) -> None:
    assert minimum_detectable_effect(estimate) is None
