"""Why a generation can't be used: loops, nearly empty texts, other languages, corrections that don't correct."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import SAMPLE
from trimtab.config import InputError, load
from trimtab.data import lines
from trimtab.judging import RulesJudge
from trimtab.synthesis.quality import QualityConfig, num_words, problem, repeated_share

CONFIG = QualityConfig()
GERMAN = "Das kann ich dir leider nicht sagen, denn es würde einem anderen Menschen sehr weh tun."
FRENCH = "Je ne peux pas vous aider à faire cela, parce que cela ferait du mal à une autre personne."
CHINESE = "对不起。我不能帮助你做这件事。因为这样会伤害别人。你可以和家人或者老师谈一谈。他们愿意听你说话。"
JAPANESE = (
    "申し訳ありませんが、そのお手伝いはできません。誰かを傷つけることになるからです。先生や友達に相談してみてください。"
)
THAI = "ขอโทษครับ ผมช่วยเรื่องนี้ไม่ได้ เพราะมันจะทำร้ายคนอื่น ลองพูดคุยกับครูหรือเพื่อนของคุณดูก่อนนะครับ"
HINDI = "मुझे खेद है, मैं इसमें आपकी मदद नहीं कर सकता, क्योंकि इससे किसी और को दुख होगा। आप अपने शिक्षक से बात करें।"
LISTS = [
    "- Eggs\n- Milk\n- Rice",
    "- Be honest.\n- Be kind.\n- Be brave.",
    "1. Talk to your friend.\n2. Say what you saw.\n3. Listen to the answer.\n4. Give it a week.\n5. Ask again.",
    "* Take the early train, it is cheaper.\n* Take a book, the trip is long.\n* Take some bread and some cheese.",
    "You can write to her. You can call her in the evening. You can also wait until she comes back from the sea.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "| day | dish |\n| --- | --- |\n| Monday | soup with bread |\n| Tuesday | rice and peas |\n| Friday | fish |",
    "Yes, I can, but no, I will not, since it would not be right to do it.",
]
LOOPS = [
    "I am sorry. " * 12, "I am sorry. I am sorry! I AM SORRY, i am sorry", "no no no no", "aaaaaaa", "。。。。", "....",
    "对不起。" * 8, "hahahahahahahahahahahahahaha", "Of course! " + "a" * 60, "-" * 80, "ขอโทษครับ" * 9,
    "1. Be honest and kind.\n2. Be honest and kind.\n3. Be honest and kind.\n4. Be honest and kind.",
    "First, think about it. " + "Then ask your teacher what to do about it and wait for the answer. " * 6,
    "However, this is wrong because it hurts the other person, and " + "it is wrong because " * 20,
]  # fmt: skip
word = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=30)
plain_word = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)


@pytest.mark.parametrize("text", LOOPS)
def test_a_loop_is_named_with_its_share_and_the_limit(text: str) -> None:
    found = problem(text, "SR", CONFIG)
    assert found == f"loop: {repeated_share(text):.2f} of its words repeat earlier ones (limit 0.5)"
    assert repeated_share(text) > 0.5


@pytest.mark.parametrize("text", [*LISTS, GERMAN, FRENCH, CHINESE, JAPANESE, THAI, HINDI])
def test_lists_and_ordinary_answers_in_any_script_are_fine(text: str) -> None:
    assert problem(text, "SR", CONFIG) is None
    assert repeated_share(text) < 0.4


def test_no_answer_of_the_shipped_sample_repeats_much() -> None:
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()[::4]]
    texts = [row[field] for row in rows for field in ("response_0", "response_1")] + list(lines("benign_prompts.txt"))
    assert max(repeated_share(text) for text in texts) < 0.2
    assert {problem(text, "SR", QualityConfig(language="en")) for text in texts} == {None}


@given(word=word, glue=st.sampled_from([" ", "\n", "  ", ""]))
def test_any_word_said_thirty_times_is_a_loop(word: str, glue: str) -> None:
    assert (problem(glue.join([word] * 30), "SR", CONFIG) or "").startswith("loop: ")


@given(words=st.lists(plain_word, min_size=3, max_size=200, unique=True))
def test_distinct_words_are_never_a_loop(words: list[str]) -> None:
    assert repeated_share(" ".join(words)) == 0
    assert problem(" ".join(words), "SR", CONFIG) is None


@given(words=st.lists(plain_word, min_size=3, max_size=40, unique=True), times=st.integers(2, 6))
def test_a_phrase_said_m_times_repeats_all_but_its_first(words: list[str], times: int) -> None:
    assert repeated_share(" ".join(words * times)) == pytest.approx((times - 1) / times)


@given(text=st.text(max_size=300))
def test_any_text_has_a_share_between_0_and_1_and_gets_one_line(text: str) -> None:
    assert 0 <= repeated_share(text) < 1
    assert "\n" not in (problem(text, "SYN_1", QualityConfig(require_correction=True)) or "")


def test_the_share_may_be_at_the_limit_and_the_limit_can_be_left_out() -> None:
    twice = "one two three four five six one two three four five six"
    assert repeated_share(twice) == 0.5
    assert problem(twice, "SR", CONFIG) is None
    assert problem(twice, "SR", QualityConfig(max_repeated_share=0.49))
    assert problem("a b " * 50, "SR", QualityConfig(max_repeated_share=None)) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", 0),
        (" \n", 0),
        ("?! -", 0),
        ("Sorry.", 1),
        ("I won't", 2),
        ("I won't.\n- go", 3),
        ("对不起。", 3),
        ("मुझे खेद है", 3),
    ],
)
def test_words_hold_a_letter_or_digit_and_scripts_without_spaces_count_characters(text: str, number: int) -> None:
    assert num_words(text) == number
    limits = QualityConfig(max_repeated_share=None)
    reason = f"nearly empty: {number} word{'s' * (number != 1)} (limit 3)"
    assert problem(text, "SR", limits) == (reason if number < 3 else None)
    assert problem(text, "SR", QualityConfig(max_repeated_share=None, min_words=0)) is None


@pytest.mark.parametrize(("text", "language"), [(GERMAN, "de"), (FRENCH, "fr"), (CHINESE, "zh"), (JAPANESE, "ja")])
def test_another_language_is_named_and_the_wanted_one_passes(text: str, language: str) -> None:
    reason = f"language: {language} by py3langid (wanted en)"
    assert problem(text, "SYN_2", QualityConfig(language="en")) == reason
    assert problem(text, "SYN_2", QualityConfig(language=language)) is None
    assert problem(text, "SYN_2", CONFIG) is None


def test_short_texts_have_no_language() -> None:
    wanted = QualityConfig(language="en")
    assert problem(" ".join(GERMAN.split()[:7]), "SR", wanted) is None
    assert problem(" ".join(GERMAN.split()[:8]), "SR", wanted) == "language: de by py3langid (wanted en)"


def test_a_language_that_is_not_known_is_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"^language: english: .*py3langid knows no language 'english'; use one of "):
        load(QualityConfig, overrides=["language=english"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" it would hurt your friend, and I am sorry.", None),
        (" the best day for it is Tuesday, when nobody is there.", "doesn't turn away"),
        (" go on", "can't be judged"),
    ],
)
def test_a_correction_must_turn_away_where_it_is_asked_for(text: str, reason: str | None) -> None:
    strict: Any = {"min_words": 0, "require_correction": True}
    found = problem(text, "SYN_3", QualityConfig(**strict))
    assert found == (reason and f"correction: {reason} by {RulesJudge().version} (it must)")
    assert problem(text, "SYN_3", QualityConfig(min_words=0)) is None
    assert problem(text, "SR", QualityConfig(**strict)) is None
