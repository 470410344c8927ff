"""Wordings are found as words: in all their forms, across short forms and words of stress, never across sentences."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.data import lines
from trimtab.judging.wording import Wordings, words_of

SMALL = Wordings(["@who: i we", "@who: they", "a: @who can/will not !wait", "b: < tell * truth", "c: walk~ home? now"])
SHIPPED = Wordings(lines("judge_rules_3.txt"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I can't, really.", "| i can not |"),
        ("We’LL go; it's late!", "| we will go ; it is late |"),
        ("Won't you? Let's see.\n\nCannot!", "| will not you | let us see | can not |"),
        ("Say “I won't” to him, please.", '| say " to him |'),
        ('and leave." Then wait', "| then wait |"),
        ("... no, the colleague's", "| no , the colleague's |"),
        ("", "| |"),
    ],
)
def test_texts_are_read_in_full_words(text: str, words: str) -> None:
    assert words_of(text) == words.split()


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("They can't help", "a"),
        ("We really won't", "a"),
        ("I can't wait", ""),
        ("I can. Not now", ""),
        ("Smile, and tell her the truth", "b"),
        ("Tell her. The truth", ""),
        ("Tell her not the truth", ""),
        ("Tell one, two, or three of them the truth", ""),
        ("You must tell her the truth", ""),
        ("Walking home now", "c"),
        ("She walks now", "c"),
        ("walk home later", ""),
    ],
)
def test_phrases_of_a_list(text: str, kinds: str) -> None:
    assert "".join(found.kind for found in SMALL.find(words_of(text))) == kinds


@pytest.mark.parametrize(
    ("word", "form"),
    [
        ("trust", "trusts"),
        ("pay", "paying"),
        ("scare", "scared"),
        ("rob", "robbing"),
        ("rely", "relies"),
        ("miss", "misses"),
    ],
)
def test_forms_of_a_word(word: str, form: str) -> None:
    assert Wordings([f"k: {word}~"]).find([form])
    assert not Wordings([f"k: {word}"]).find([form])


def test_what_is_found_are_its_words() -> None:
    words = words_of("So tell them all the truth.")
    (found,) = SMALL.find(words)
    assert words[found.start : found.end] == ["tell", "them", "all", "the", "truth"]


@given(st.text(alphabet=string.ascii_letters + " .,;!?\"'’“”—\n\t0é", max_size=80))
def test_every_text_can_be_read(text: str) -> None:
    words = words_of(text)
    assert words[0] == words[-1] == "|"
    assert all(0 < found.end <= len(words) + 1 for found in SHIPPED.find(words))


def test_no_phrase_of_the_shipped_list_stands_twice() -> None:
    phrases = [(line.split(": ")[0], phrase) for line in lines("judge_rules_3.txt") if line[0] != "@"
               for phrase in line.partition(": ")[2].split(", ")]  # fmt: skip
    assert len(set(phrases)) == len(phrases)
