"""Reads lists of wordings and finds them in a text: words, not characters, so that one line stands for all its forms.

A line is ``kind: phrase, phrase`` or ``@set: word word``. In a phrase ``a/b`` is either word, ``@set`` one of a set,
``word~`` a word in all its regular forms, ``word?`` may be missing, ``*`` is up to three words of the same clause, none
of them "not"; ``< first`` begins a clause, and where ``!a/b`` stands neither follows. Texts are read without case,
quotations, short forms ("can't" is "can not") and words that only stress.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

STOP, PART, COMMA, QUOTE = "|", ";", ",", '"'
"""What parts sentences, clauses and phrases, and what stands in a quotation's place."""
MOST_SKIPPED = 3
"""Most words that ``*`` stands for."""
# What stands in quotation marks is said by somebody in the text, or is to be said.
QUOTED = re.compile(r'(?:(?<=\s)|^)"(?=\S)[^"\n]*(?:"|$)')
OPENED_BEFORE = re.compile(r'[^"]*\S"(?!\w)')
SHORT = re.compile(
    r"\b(?:(can)not|(can|won|shan|ain)'?t|(\w+)n't|(let)'s|(it|that|this|s?he|who|what|where|here|there|how)'s"
    r"|(\w+)'(m|d|re|ve|ll))\b"
)
LONG = {"won": "will", "shan": "shall", "ain": "is", "m": "am", "d": "would", "re": "are", "ve": "have", "ll": "will"}
TOKEN = re.compile(r"[^\W_]+(?:['-][^\W_]+)*|[.!?…\n;:—–,\"]")
MARKS = {**dict.fromkeys(".!?…\n", STOP), **dict.fromkeys(";:—–", PART)}
STRESS = {"really", "simply", "just", "quite", "very", "truly", "certainly", "definitely", "probably", "clearly",
          "plainly", "still", "also", "even", "ever", "please", "so-called", "deeply"}  # fmt: skip
STARTERS = frozenset((STOP, PART, COMMA, "and", "or", "then", "but", "so", "because", "since", "as"))
"""What a clause may begin after."""
NEVER_SKIPPED = frozenset((STOP, PART, "not", "never", "no"))


def words_of(text: str) -> list[str]:
    """The words of a text, with a mark before and after each sentence, and between clauses and phrases."""
    plain = text.replace("’", "'").replace("“", '"').replace("”", '"').casefold().strip()
    if opened_before := OPENED_BEFORE.match(plain):
        plain = plain[opened_before.end() :]
    plain = SHORT.sub(_in_full, QUOTED.sub(' " ', plain))
    return [STOP, *_marked(TOKEN.findall(plain)), STOP]


def _in_full(found: re.Match[str]) -> str:
    can, stem, other, let, pronoun, word, ending = found.groups()
    if negated := can or stem or other:
        return f"{LONG.get(negated, negated)} not"
    return f"{let} us" if let else f"{pronoun} is" if pronoun else f"{word} {LONG[ending]}"


def _marked(tokens: list[str]) -> Iterator[str]:
    """One mark where several stand, none at the ends, and no words that only stress what follows."""
    waiting = ""
    started = False
    for token in tokens:
        mark = MARKS.get(token, token)
        if mark in (STOP, PART, COMMA):
            waiting = STOP if STOP in (mark, waiting) else mark
        elif token not in STRESS:
            if started and waiting:
                yield waiting
            started, waiting = True, ""
            yield token


@dataclass(frozen=True)
class Piece:
    """One place of a phrase: which words may stand there, or must not."""

    words: frozenset[str] = frozenset()
    optional: bool = False
    gap: bool = False
    barred: bool = False


Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Found:
    """A phrase of a kind, from a word to before another."""

    kind: str
    start: int
    end: int


class Wordings:
    """All phrases of a list, by the first words that they can begin with."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.sets: dict[str, frozenset[str]] = {}
        self._by_word: dict[str, list[tuple[str, bool, Pieces]]] = {}
        for line in lines:
            name, _, rest = line.partition(": ")
            if name.startswith("@"):
                self.sets[name] = self.sets.get(name, frozenset()) | self._either(rest.split())
            else:
                for phrase in rest.split(", "):
                    self._add(name, phrase.split())

    def find(self, words: list[str]) -> list[Found]:
        """Every phrase in a text, in order; where ``*`` can stand for more or fewer words, for the fewest."""
        found = []
        for at, word in enumerate(words):
            for kind, anchored, pieces in self._by_word.get(word, ()):
                if anchored and words[at - 1] not in STARTERS:
                    continue
                end = _fits(pieces, 1, words, at + 1)
                if end is not None:
                    found.append(Found(kind, at, end))
        return found

    def _add(self, kind: str, parts: list[str]) -> None:
        anchored = parts[0] == "<"
        pieces = tuple(self._piece(part) for part in parts[anchored:])
        assert pieces[0].words, parts
        assert not pieces[0].optional | pieces[0].barred, parts
        for word in pieces[0].words:
            self._by_word.setdefault(word, []).append((kind, anchored, pieces))

    def _piece(self, part: str) -> Piece:
        if part == "*":
            return Piece(gap=True)
        words = self._either(part.strip("!?").split("/"))
        return Piece(words, optional=part.endswith("?"), barred=part.startswith("!"))

    def _either(self, parts: Iterable[str]) -> frozenset[str]:
        return frozenset(word for part in parts for word in (self.sets[part] if part[0] == "@" else _forms(part)))


def _forms(word: str) -> set[str]:
    """A word, with ``~`` in all the forms that a regular one has; forms that no word has do no harm."""
    if not word.endswith("~"):
        return {word}
    base = word[:-1]
    stem = base.removesuffix("e")
    made = {base, f"{base}s", f"{base}es", f"{stem}ed", f"{stem}ing", f"{base}{base[-1]}ed", f"{base}{base[-1]}ing"}
    return made | {f"{base[:-1]}ies", f"{base[:-1]}ied"} if base.endswith("y") else made


def _fits(pieces: Pieces, number: int, words: list[str], at: int) -> int | None:
    """Where a phrase ends if its pieces from a number on stand at a place, which may be past the text's end."""
    if number == len(pieces):
        return at
    piece = pieces[number]
    word = words[at] if at < len(words) else ""
    if piece.barred:
        return None if word in piece.words else _fits(pieces, number + 1, words, at)
    if piece.gap:
        return _after_gap(pieces, number + 1, words, at)
    if word in piece.words and (end := _fits(pieces, number + 1, words, at + 1)) is not None:
        return end
    return _fits(pieces, number + 1, words, at) if piece.optional else None


def _after_gap(pieces: Pieces, number: int, words: list[str], at: int) -> int | None:
    for here in range(at, min(at + MOST_SKIPPED, len(words) - 1) + 1):
        if (end := _fits(pieces, number, words, here)) is not None:
            return end
        if words[here] in NEVER_SKIPPED:
            return None
    return None
