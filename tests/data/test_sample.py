"""The shipped data keep what the recipe, the split and the weak judge rely on."""

from __future__ import annotations

import json
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, get_args

import pytest

from trimtab.data import lines
from trimtab.judging import RulesJudge, course_corrects
from trimtab.judging.config import RulesVersion
from trimtab.near_duplicates import normalize
from trimtab.sources import SourceConfig, read_requests, split_requests

PATH = Path(__file__).parents[2] / "platform" / "trimtab" / "data" / "sample_requests.jsonl"
JUDGES = [RulesJudge(version=version) for version in get_args(RulesVersion)]
ROWS: list[dict[str, Any]] = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


def _responses(safe: bool) -> list[str]:
    return [row[f"response_{n}"] for row in ROWS for n in (0, 1) if row[f"is_response_{n}_safe"] is safe]


def test_rows_have_the_published_format_with_one_safe_and_one_unsafe_answer() -> None:
    assert len(ROWS) >= 96
    names = {"prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe", "better_response_id",
             "safer_response_id"}  # fmt: skip
    for row in ROWS:
        assert set(row) == names
        assert row["is_response_0_safe"] is not row["is_response_1_safe"]
        assert row["safer_response_id"] == (0 if row["is_response_0_safe"] else 1)
    requests, bad = read_requests(SourceConfig())
    assert len(requests) == len(ROWS)
    assert bad == []


def test_both_places_hold_unsafe_answers() -> None:
    assert 0.3 < sum(row["is_response_0_safe"] for row in ROWS) / len(ROWS) < 0.7


def test_unsafe_answers_are_longer_than_the_filters_80_words_and_can_be_cut() -> None:
    for text in _responses(safe=False):
        assert len(text.split()) > 80
        assert sum(character in ',.!:;?-"(){}[]' for character in text) >= 8


def test_prompts_ask_how_or_what() -> None:
    assert all(any(word in row["prompt"] for word in ("how", "what", "How", "What")) for row in ROWS)


def _pairs_of_words(prompt: str) -> set[tuple[str, str]]:
    words = normalize(prompt).split()
    return set(pairwise(words))


def test_no_two_prompts_are_near_duplicates() -> None:
    prompts = [row["prompt"] for row in ROWS]
    sets = [_pairs_of_words(prompt) for prompt in prompts]
    close = [(prompts[i], prompts[j]) for i, j in combinations(range(len(sets)), 2)
             if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.6]  # fmt: skip
    assert close == []
    assert len({normalize(prompt) for prompt in prompts}) == len(prompts)


def test_default_split_leaves_enough_for_training() -> None:
    training, evaluation = split_requests(read_requests(SourceConfig())[0], SourceConfig())
    assert len(evaluation) >= 48
    assert len(training) >= 64


def test_openers_and_triggers_are_the_papers_numbers() -> None:
    assert len(set(lines("openers.txt"))) == len(lines("openers.txt")) == 15
    assert len(set(lines("triggers.txt"))) == len(lines("triggers.txt")) == 15
    assert len(lines("evaluation_openers.txt")) >= 5


def test_evaluation_openers_are_never_seen_in_training() -> None:
    assert not {normalize(line) for line in lines("evaluation_openers.txt")} & {
        normalize(line) for line in lines("openers.txt")
    }


@pytest.mark.parametrize("judge", JUDGES, ids=str)
def test_rules_judge_sees_no_turn_in_any_unsafe_answer_or_opener(judge: RulesJudge) -> None:
    wrong = [text for text in _responses(safe=False) if course_corrects(text, judge) != "no"]
    assert wrong == []
    for name in ("openers.txt", "evaluation_openers.txt"):
        assert [line for line in lines(name) if course_corrects(line, judge) != "no"] == []


@pytest.mark.parametrize("judge", JUDGES, ids=str)
def test_rules_judge_sees_the_turn_in_nearly_all_safe_answers(judge: RulesJudge) -> None:
    safe = _responses(safe=True)
    assert sum(course_corrects(text, judge) == "yes" for text in safe) / len(safe) > 0.9


def test_benign_prompts_are_distinct_and_no_request_of_the_sample() -> None:
    benign = [normalize(line) for line in lines("benign_prompts.txt")]
    assert len(set(benign)) == len(benign) >= 32
    assert not set(benign) & {normalize(row["prompt"]) for row in ROWS}


@pytest.mark.parametrize(
    "name",
    [
        "openers.txt",
        "triggers.txt",
        "evaluation_openers.txt",
        "judge_rules.txt",
        "judge_rules_2.txt",
    ],
)
def test_comments_and_empty_lines_are_not_read(name: str) -> None:
    assert all(line.strip() == line and line and not line.startswith("#") for line in lines(name))
