"""Statistics of ranked groups, shard by shard, and the trend of harmlessness along the ranking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from trimtab.judging import RulesJudge
from trimtab.schemas import RankedGroup, Response
from trimtab.stats import wilson
from trimtab.synthesis import statistics
from trimtab.synthesis.statistics import Statistics, num_given_chars, sample, sample_harmlessness

JUDGE = RulesJudge()
SAFE, UNSAFE, SHORT = "I am sorry, I won't", "First you take the bus", "Well"
TRIGGERS = ("However, I must stop here, because", "However, I must")


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals from fewer resamples: quick, and wide enough for what is asked of them here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "NUM_RESAMPLES", 200)
        yield


def _group(number: int, *texts: str, roles: str = "SR SYN_1 FHR", configuration: str = "harmless") -> RankedGroup:
    """A group whose texts become distinct by the spaces behind them."""
    responses = [Response(role=role, text=text + " " * place)
                 for place, (role, text) in enumerate(zip(roles.split(), texts, strict=True))]  # fmt: skip
    return RankedGroup(
        id=f"g{number}", source=f"r{number}", configuration=configuration, prompt=f"How {number}?", responses=responses
    )


def _groups(*shapes: tuple[str, ...], num: int = 30) -> list[RankedGroup]:
    return [_group(number, *texts) for number, texts in enumerate(islice(cycle(shapes), num))]


def _counted(groups: list[RankedGroup], **fields: Any) -> Statistics:
    found = Statistics(**fields)
    for group in groups:
        found.add(group)
    return found


texts = st.sampled_from([SAFE, UNSAFE, SHORT, "a b c d e f g h", "However, I must not say more about it now"])
some_groups = st.lists(
    st.builds(
        _group, st.integers(0, 9), texts, texts, texts, configuration=st.sampled_from(["harmless", "uncensored"])
    ), max_size=8,
)  # fmt: skip


@settings(max_examples=30)
@given(first=some_groups, second=some_groups, configuration=st.sampled_from([None, "harmless"]))
def test_merging_shards_is_counting_all_of_them(
    first: list[RankedGroup], second: list[RankedGroup], configuration: str | None
) -> None:
    parts = [_counted(groups, configuration=configuration) for groups in (first, second)]
    whole = _counted([*first, *second], configuration=configuration).result()
    through_json = [Statistics.model_validate_json(part.model_dump_json()) for part in parts]
    for one, other in (parts, reversed(through_json)):
        one.merge(other)
        assert one.result() == whole
    json.dumps(whole, allow_nan=False)


def test_merging_into_an_empty_one_keeps_the_order_of_the_ranking() -> None:
    found = Statistics()
    found.merge(_counted([_group(1, SAFE, UNSAFE, SHORT, roles="SR SYN_1 FHR")]))
    assert list(found.result()["roles"]) == ["SR", "SYN_1", "FHR"]


def test_merging_what_was_counted_otherwise_is_our_own_bug() -> None:
    with pytest.raises(AssertionError):
        Statistics(configuration="harmless").merge(Statistics())


def test_nothing_gives_no_role_no_length_and_nothing_that_looks_like_a_rate() -> None:
    found = Statistics().result()
    assert found["roles"] == {}
    assert found["lengths"] == {"edges": [], "counts": {}}
    assert (found["groups"], found["prompts"], found["near_duplicates"]) == (0, 0, None)


@settings(max_examples=30)
@given(words=st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_words_are_numpys_numbers_and_each_answer_is_in_one_bin(words: list[int]) -> None:
    groups = [_group(number, "x " * count, SAFE, UNSAFE) for number, count in enumerate(words)]
    found = _counted(groups).result()
    sr = found["roles"]["SR"]
    assert sr["number"] == len(words)
    assert sr["words"]["mean"] == pytest.approx(np.mean(words))
    assert sr["words"]["median"] == pytest.approx(np.median(words))
    assert sr["words"]["p95"] == pytest.approx(np.quantile(words, 0.95))
    assert (sr["words"]["min"], sr["words"]["max"]) == (min(words), max(words))
    assert sr["characters"]["total"] == sum(2 * count for count in words)
    edges = found["lengths"]["edges"]
    assert len(set(np.diff(edges))) == 1
    assert len(edges) <= 22
    assert {role: sum(counts) for role, counts in found["lengths"]["counts"].items()} == dict.fromkeys(
        found["roles"], len(words)
    )


def test_bins_are_where_the_lengths_are() -> None:
    lengths = _counted([_group(0, "x " * 7, "x " * 12, "x " * 12)]).result()["lengths"]
    assert lengths == {"edges": list(range(14)), "counts": {
        "SR": [int(place == 7) for place in range(13)],
        "SYN_1": [int(place == 12) for place in range(13)], "FHR": [int(place == 12) for place in range(13)],
    }}  # fmt: skip


def test_flips_are_counted_and_are_in_no_role() -> None:
    groups = _groups((SAFE, SAFE, UNSAFE), num=4)
    flips = [group.flip("uncensored", "Be wild.") for group in groups[:3]]
    found = _counted([*flips, *groups], configuration="harmless").result(num_near_duplicates=5)
    assert (found["groups"], found["flips"], found["near_duplicates"]) == (4, 3, 5)
    assert found["configurations"] == {"harmless": 4, "uncensored": 3}
    assert found["roles"] == _counted(groups).result()["roles"]
    assert [role["number"] for role in found["roles"].values()] == [4, 4, 4]
    assert _counted([*flips, *groups]).result()["flips"] == 0


def test_prompts_count_once_however_they_are_written() -> None:
    groups = [_group(1, SAFE, SAFE, UNSAFE), _group(2, SAFE, SAFE, UNSAFE)]
    shouted = groups[0].model_copy(update={"prompt": "HOW  1 ?!"})
    assert _counted([*groups, shouted]).result()["prompts"] == 2


def test_rates_carry_wilson_intervals_and_unparsed_is_in_none() -> None:
    found = _counted(_groups((SAFE, SHORT, UNSAFE), (SAFE, SHORT, SAFE), (UNSAFE, SHORT, UNSAFE), num=9)).result()
    expected = wilson(6, 9)
    assert found["roles"]["SR"]["turns_away"] == {
        "value": expected.value, "low": expected.low, "high": expected.high, "n": 9, "unparsed": 0,
    }  # fmt: skip
    assert found["roles"]["SYN_1"]["turns_away"] == {"value": None, "low": None, "high": None, "n": 0, "unparsed": 9}
    assert found["roles"]["FHR"]["turns_away"]["value"] == pytest.approx(1 / 3)


def _corrected(start: str, behind: str) -> RankedGroup:
    group = _group(0, SAFE, start + behind, UNSAFE)
    given = group.responses[1].model_copy(update={"num_prefill_chars": len(start)})
    return group.model_copy(update={"responses": (group.responses[0], given, group.responses[2])})


def test_a_trigger_that_was_given_is_not_what_the_model_wrote() -> None:
    start, behind = "Sure, take the bus,", f" {TRIGGERS[0]} the bus is on time today"
    group = _corrected(start, behind)
    known = _counted([group], triggers=TRIGGERS).result()["roles"]
    unknown = _counted([group]).result()["roles"]
    assert known["SYN_1"]["written_turns_away"]["value"] == 0
    assert unknown["SYN_1"]["written_turns_away"]["value"] == 1
    assert known["SYN_1"]["turns_away"]["value"] == unknown["SYN_1"]["turns_away"]["value"] == 1
    text = group.responses[1].text
    assert known["SYN_1"]["share_given"] == pytest.approx(len(start + " " + TRIGGERS[0]) / len(text))
    assert unknown["SYN_1"]["share_given"] == pytest.approx(len(start) / len(text))
    assert known["SR"]["written_turns_away"] is None
    assert known["SR"]["share_given"] == 0


def test_the_longest_trigger_that_stands_behind_the_start_counts() -> None:
    response = _corrected("Sure,", f" {TRIGGERS[0]} no").responses[1]
    assert num_given_chars(response, TRIGGERS) == len(f"Sure, {TRIGGERS[0]}")
    assert num_given_chars(response, TRIGGERS[1:]) == len(f"Sure, {TRIGGERS[1]}")
    assert num_given_chars(response, ("Yet",)) == len("Sure,")
    assert num_given_chars(response.model_copy(update={"num_prefill_chars": 0}), TRIGGERS) == 0


@settings(max_examples=30)
@given(order=st.permutations(range(40)), num=st.integers(0, 50))
def test_a_sample_does_not_depend_on_the_order_of_the_groups(order: list[int], num: int) -> None:
    groups = _groups((SAFE, SAFE, UNSAFE), num=40)
    flips = [group.flip("uncensored", None) for group in groups]
    found = sample([group for place in order for group in (flips[place], groups[place])], num, 7, "harmless")
    assert found == sample(groups, num, 7)
    assert len({group.id for group in found}) == min(num, 40)


def test_another_seed_draws_another_sample() -> None:
    groups = _groups((SAFE, SAFE, UNSAFE), num=40)
    assert sample(groups, 10, 0) != sample(groups, 10, 1)


def test_a_falling_ranking_is_said_to_fall_and_spearman_is_scipys() -> None:
    groups = _groups((SAFE, SAFE, UNSAFE), (SAFE, UNSAFE, UNSAFE), (SAFE, SAFE, SAFE), num=60)
    found = sample_harmlessness(groups, JUDGE)
    places, safe = [0, 1, 2] * 60, [1, 1, 0, 1, 0, 0, 1, 1, 1] * 20
    assert found["trend"]["value"] == pytest.approx(spearmanr(places, safe).statistic)
    assert found["trend"]["low"] < found["trend"]["value"] < found["trend"]["high"] < 0
    assert (found["trend"]["n"], found["trend"]["num_clusters"], found["groups"]) == (180, 60, 60)
    assert found["falls"] is True
    assert found["verdict"].startswith(
        "by this judge harmlessness falls along the ranking, clearly at 2 of 2 steps (Spearman -0.5"
    )
    expected = wilson(40, 60)
    assert found["ranks"][1] == {"role": "SYN_1", "rank": 2, "safe": {
        "value": expected.value, "low": expected.low, "high": expected.high, "n": 60, "unparsed": 0,
    }}  # fmt: skip
    assert [rank["role"] for rank in found["ranks"]] == ["SR", "SYN_1", "FHR"]
    assert found["judge"] == JUDGE.description
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("shapes", "falls", "verdict"),
    [
        ([(UNSAFE, SAFE, SAFE)], False, "does NOT fall along the ranking: it rises (Spearman 0."),
        ([(UNSAFE, SAFE, UNSAFE), (SAFE, UNSAFE, SAFE)], False, "does NOT fall along the ranking: no clear trend"),
        ([(SAFE, SAFE, SAFE)], False, "does NOT fall along the ranking: all 90 answers are safe"),
        ([(UNSAFE, UNSAFE, UNSAFE)], False, "does NOT fall along the ranking: all 90 answers are unsafe"),
        ([(SHORT, SHORT, SHORT)], None, "n/a, no answer could be judged"),
        ([(SHORT, SAFE, SHORT)], None, "n/a, only one rank could be judged"),
        ([(UNSAFE, SAFE, UNSAFE)] * 9 + [(SAFE, SAFE, UNSAFE)], False,
         "; but SYN_1 (1.00) is safer than SR (0.10)"),
        ([(SAFE, SAFE, UNSAFE)] * 9 + [(UNSAFE, SAFE, UNSAFE)], True, ", clearly at 1 of 2 steps (Spearman"),
        ([(UNSAFE, SAFE, UNSAFE), (SAFE, SAFE, UNSAFE)], True, "; but SYN_1 (1.00) is safer than SR (0.50)"),
    ],
)  # fmt: skip
def test_the_verdict_says_what_the_ranking_does(
    shapes: list[tuple[str, ...]], falls: bool | None, verdict: str
) -> None:
    found = sample_harmlessness(_groups(*shapes), JUDGE)
    assert verdict in found["verdict"]
    assert found["falls"] is falls
    assert "\n" not in found["verdict"]


def test_one_group_or_none_shows_no_trend() -> None:
    one = sample_harmlessness(_groups((SAFE, SAFE, UNSAFE), num=1), JUDGE)
    assert (one["falls"], one["trend"]["low"]) == (None, None)
    assert one["verdict"].endswith("n/a, one group can't show a trend")
    none = sample_harmlessness([], JUDGE)
    assert (none["falls"], none["groups"], none["ranks"], none["trend"]["value"]) == (None, 0, [], None)


def test_flips_are_not_sampled_and_the_number_is_a_limit() -> None:
    groups = _groups((SAFE, SAFE, UNSAFE), num=30)
    flips = [group.flip("uncensored", None) for group in groups]
    found = sample_harmlessness([*flips, *groups], JUDGE, num=12, configuration="harmless")
    assert found["groups"] == 12
    assert [rank["safe"]["value"] for rank in found["ranks"]] == [1, 1, 0]


def test_what_cannot_be_judged_is_counted_apart() -> None:
    groups = _groups((SAFE, SHORT, UNSAFE), (SAFE, SAFE, UNSAFE), num=20)
    ranks = sample_harmlessness(groups, JUDGE)["ranks"]
    assert [(rank["safe"]["n"], rank["safe"]["unparsed"]) for rank in ranks] == [(20, 0), (10, 10), (20, 0)]
    assert ranks[1]["safe"]["value"] == 1


def test_groups_of_two_have_a_trend_too() -> None:
    groups = [_group(number, SAFE, UNSAFE, roles="chosen rejected") for number in range(20)]
    found = sample_harmlessness(groups, JUDGE)
    assert found["falls"] is True
    assert [(rank["role"], rank["rank"]) for rank in found["ranks"]] == [("chosen", 1), ("rejected", 2)]
