"""Cuts of a harmful response (arXiv 2407.16637, §4)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.synthesis.recipes.cuts import PUNCTUATION, cut

# Written down from the paper, not taken from the code.
PAPER = {",", ".", "!", ":", ";", "?", "-", '"', "(", ")", "{", "}", "[", "]"}
pieces = st.sampled_from(["word", " ", "é", "\n", "'", "/", *sorted(PAPER)])
responses = st.lists(pieces, max_size=80).map("".join)


def _count(text: str) -> int:
    return sum(character in PAPER for character in text)


def test_punctuation_is_the_papers() -> None:
    assert set(PUNCTUATION) == PAPER


@given(response=responses, num_cuts=st.integers(1, 6), seed=st.integers(0, 99))
def test_cuts_are_a_chain_of_prefixes_at_the_drawn_places(response: str, num_cuts: int, seed: int) -> None:
    total = _count(response)
    if total < num_cuts:
        with pytest.raises(ValueError, match=f"{total} punctuation characters, fewer than num_cuts={num_cuts}"):
            cut(response, num_cuts, random.Random(seed))
        return
    parts = cut(response, num_cuts, random.Random(seed))
    step = _count(parts[0])
    assert step in {max(1, total // num_cuts - 1), total // num_cuts}
    assert [_count(part) for part in parts] == [step * (number + 1) for number in range(num_cuts)]
    assert all(part[-1] in PAPER for part in parts)
    for shorter, longer in zip(parts, [*parts[1:], response], strict=True):
        assert longer.startswith(shorter)


def test_both_steps_are_drawn_evenly() -> None:
    drawn = [_count(cut("a, " * 20, 4, random.Random(seed))[0]) for seed in range(400)]
    assert set(drawn) == {4, 5}
    assert 150 < drawn.count(4) < 250


def test_same_seed_same_cuts() -> None:
    response = "One, two. Three! Four? Five; six: seven - eight (nine)."
    assert cut(response, 4, random.Random(5)) == cut(response, 4, random.Random(5))
    assert cut("a, b, c, d,", 4, random.Random(0)) == ["a,", "a, b,", "a, b, c,", "a, b, c, d,"]
