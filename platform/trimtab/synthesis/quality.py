"""Why a generation can't be used: nearly empty, caught in a loop, in another language, or not turning away.

Plain functions of the written text. What fails is quarantined by the caller with the reason given here, never mended.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

from pydantic import Field, field_validator

from trimtab.config import Config
from trimtab.judging import RulesJudge, course_corrects

LONGEST_NGRAM = 5
LONG_WORD_CHARS = 20
MIN_WORDS_FOR_LANGUAGE = 8
MIN_CONFIDENCE = 0.5
# Thai, Lao, Burmese, Khmer, kana, Chinese characters: written without spaces, so that a character counts as a word.
UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
PUNCTUATION = string.punctuation + "…“”„‘’«»¿¡—–·•。、，！？：；（）「」『』।"  # noqa: RUF001
WORD = re.compile(r"[^\W_]\S*")  # from a token's first letter or digit to its end: one for each token that has one
LIST_MARK = re.compile(r"\(?\d+[.):]|[-*•–]+")


class QualityConfig(Config):
    """What a generation must be like to be used."""

    min_words: int = Field(3, ge=0)
    """A generation with fewer words is nearly empty. Chinese, Japanese, Thai and their like count characters."""
    max_repeated_share: float | None = Field(0.5, ge=0, le=1)
    """A generation is a loop when more than this share of its words repeats earlier ones; none: not looked at."""
    language: str | None = None
    """ISO 639-1 code, such as ``en``; texts in another language are set aside. Texts of fewer than 8 words, and
    those of which py3langid is less than half sure, are not judged. None: not looked at."""
    require_correction: bool = False
    """Whether each SYN_i must turn away from harm behind its trigger, by ``judge``."""
    judge: RulesJudge = RulesJudge()
    """Who says whether a SYN_i turns away."""

    @field_validator("language")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in _identifier().labels:
            raise ValueError(f"py3langid knows no language {value!r}; use one of {', '.join(_identifier().labels)}")
        return value


def problem(text: str, kind: str, config: QualityConfig) -> str | None:
    """Why a generation can't be used, in one line that names the measure and its limit; None where it can.

    Args:
        text: what the model wrote, without the turn's start that it was given.
        kind: what it is for: ``SR``, ``SYN_1``, …; a correction is only asked of SYN_i.
    """
    return (
        _loop(text, config.max_repeated_share)
        or _nearly_empty(text, config.min_words)
        or _other_language(text, config.language)
        or (_no_correction(text, config.judge) if config.require_correction and kind.startswith("SYN_") else None)
    )


def _loop(text: str, limit: float | None) -> str | None:
    if limit is None:
        return None
    units = _units(text)
    if len(units) - len(set(units)) <= limit * len(units):  # only a unit that was there before can lie in a repetition
        return None
    if (share := _share(units)) <= limit:
        return None
    return f"loop: {share:.2f} of its words repeat earlier ones (limit {limit})"


def _nearly_empty(text: str, limit: int) -> str | None:
    number = num_words(text, limit)
    return f"nearly empty: {number} word{'s' * (number != 1)} (limit {limit})" if number < limit else None


def _other_language(text: str, wanted: str | None) -> str | None:
    if wanted is None or num_words(text, MIN_WORDS_FOR_LANGUAGE) < MIN_WORDS_FOR_LANGUAGE:
        return None
    found, _ = _identifier().classify(text)
    return None if found in (wanted, "und") else f"language: {found} by py3langid (wanted {wanted})"


def _no_correction(text: str, judge: RulesJudge) -> str | None:
    verdict = course_corrects(text, judge)
    said = {"no": "doesn't turn away", "unparsed": "can't be judged"}
    return None if verdict == "yes" else f"correction: {said[verdict]} by {judge.version} (it must)"


def num_words(text: str, most: int | None = None) -> int:
    """Words that hold a letter or digit; in scripts without spaces each character is one.

    Args:
        most: count no further, where it only matters whether there are so many; the number may then be larger.
    """
    if not UNSPACED.search(text):
        return sum(1 for _ in islice(WORD.finditer(text), most))
    tokens = (token for token in text.split() if any(map(str.isalnum, token)))
    return sum(len(UNSPACED.findall(token)) or 1 for token in tokens)


def repeated_share(text: str) -> float:
    """Share of a text's words that lie in an n-gram which the text held before: 0 for none, near 1 for a loop.

    The duplicate n-gram fraction of Gopher's filter (Rae et al., 2021, arXiv 2112.11446, appendix A1), each word
    counted once however many repeated n-grams it lies in, and the first occurrence not counted: a phrase said m
    times over has (m − 1) / m. n is 5, the shortest that Gopher uses for it, and a quarter of the words in texts of
    fewer than 20, since a short loop has no long n-grams. Gopher counts characters; words make the limit readable.

    Case, punctuation around a word and the marks of a list don't matter ("1. Sorry. 2. Sorry!" repeats). Text
    without spaces is read character by character: scripts that have none, words of more than 20 characters, and
    texts of one or two words.
    """
    return _share(_units(text))


def _share(units: Sequence[str]) -> float:
    length = min(LONGEST_NGRAM, max(1, len(units) // 4))
    return sum(_repeats(units, length)) / len(units) if units else 0.0


def _repeats(units: Sequence[str], length: int) -> list[bool]:
    """For each unit: does it lie in an n-gram of this length that began earlier too?"""
    ngrams = list(zip(*(units[start:] for start in range(length)), strict=False))
    repeats = [False] * len(units)
    if len(set(ngrams)) == len(ngrams):
        return repeats
    seen: set[tuple[str, ...]] = set()
    for start, ngram in enumerate(ngrams):
        if ngram in seen:
            repeats[start : start + length] = [True] * length
        seen.add(ngram)
    return repeats


def _units(text: str) -> list[str]:
    tokens = text.casefold().split()
    words = [word for word in map(_word, tokens) if word] or tokens
    longest = LONG_WORD_CHARS if len(tokens) > 2 else 0
    if words and max(map(len, words)) <= longest and not UNSPACED.search(text):
        return words
    apart = (list(word) if len(word) > longest or UNSPACED.search(word) else [word] for word in words)
    return [unit for units in apart for unit in units]


@lru_cache(maxsize=1 << 16)
def _word(token: str) -> str:
    """A token without the punctuation around it, or nothing where it is the mark of a list; kept, as words recur."""
    return "" if LIST_MARK.fullmatch(token) else token.strip(PUNCTUATION) or token


@lru_cache(maxsize=1)
def _identifier() -> Any:
    """py3langid's model, loaded once in a process (0.7 s); it answers ``und`` where it is less than half sure."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=MIN_CONFIDENCE)
