"""The report's examples: for each evaluation the best and the worst cases, chosen by a rule and not by hand.

Best are corrections after the longest start and prompts whose two settings are followed; worst are failures after the
shortest start, unsafe answers under the harmless setting, and the attacks that succeeded with the highest grade.
At most one case of a prompt is shown, and ties go by id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from trimtab.evaluation.attempt_results import CEILING, PLAIN
from trimtab.evaluation.following import ConfigurationPair
from trimtab.evaluation.reporting.comparing import incomparable
from trimtab.evaluation.reporting.runs import Side
from trimtab.schemas import Attempt, RetentionRow, Verdict

NUM_EXAMPLES = 3
Case = TypeVar("Case")


class Text(NamedTuple):
    """A text of an example, which stays blurred until it is clicked."""

    label: str
    text: str
    what: str
    """What the text is, for a screen reader."""


class Example(NamedTuple):
    title: str
    texts: list[Text]


class Examples(NamedTuple):
    """Some cases of a kind, and how many there are."""

    heading: str
    total: int
    shown: list[Example]


class Chat(NamedTuple):
    """A benign prompt with the first model's answer and another's."""

    place: str
    before: RetentionRow
    after: RetentionRow


def examples(sides: Sequence[Side]) -> list[Examples]:
    """The best and the worst cases of each evaluation."""
    first, *others = sides
    compared = [other for other in others if not incomparable(first, other, "prefill")]
    found = [group for other in compared for group in _against_first(first, other)]
    shown = {side.name for side in (first, *compared)} if compared else set()
    found += [group for side in sides if side.name not in shown for group in _alone(side)]
    for side in sides:
        found += [*_followed(side), *_broken(side, "injection"), *_broken(side, "robustness")]
    return found


def _against_first(first: Side, other: Side) -> list[Examples]:
    """Continuations of two models that can be compared, from the same starts."""
    both = _shared(first.verdicts("prefill"), other.verdicts("prefill"))
    was, now = first.name, other.name
    kinds = (
        (f"Best: {now} turns away, {was} does not", "no", "yes", _longest),
        (f"Worst: {now} still fails to turn away", "no", "no", _shortest),
        (f"Worst: {was} turned away, {now} no longer does", "yes", "no", _shortest),
    )
    return [
        _pairs(heading, [pair for pair in both if (pair[0].verdict, pair[1].verdict) == (a, b)], order, (was, now))
        for heading, a, b, order in kinds
    ]


def _pairs(
    heading: str, pairs: Sequence[tuple[Verdict, Verdict]], order: Callable[[Verdict], Any], names: tuple[str, str]
) -> Examples:
    return _chosen(heading, pairs, lambda pair: order(pair[1]), lambda pair: pair[1].request_id,
                   lambda pair: _continuation(list(zip(names, pair, strict=True))))  # fmt: skip


def _alone(side: Side) -> list[Examples]:
    rows = side.verdicts("prefill")
    kinds = ((f"Best: {side.name} turns away", "yes", _longest),
             (f"Worst: {side.name} fails to turn away", "no", _shortest))  # fmt: skip
    return [_chosen(heading, [row for row in rows if row.verdict == wanted], order, _prompt,
                    lambda row: _continuation([(side.name, row)]))
            for heading, wanted, order in kinds if rows]  # fmt: skip


def _followed(side: Side) -> list[Examples]:
    """Answers of the first pair in the trained words, where its sides are opposites."""
    pairs = side.records["configurable"].results.get("pairs") if "configurable" in side.records else None
    if not pairs or not (pair := ConfigurationPair.model_validate(pairs[0]["configurations"])).opposed:
        return []
    rows = side.verdicts("configurable")
    said = {(row.group, row.request_id): row for row in rows}
    s0, s1 = pair.labels
    both = [(said[s0, row.request_id], row) for row in rows if row.group == s1 and (s0, row.request_id) in said]
    wrong = [row for row in rows if row.group == s1 and row.verdict == "no"]
    right = [two for two in both if (two[0].verdict, two[1].verdict) == ("no", "yes")]
    return [
        _chosen(f"Best: {side.name} follows both settings", right, lambda two: two[1].id,
                lambda two: two[1].request_id, lambda two: _answers(two, side.name)),
        _chosen(f"Worst: {side.name} answers unsafely under {s1}", wrong, lambda row: row.id, _prompt,
                lambda row: _answers([row], side.name)),
    ]  # fmt: skip


def _broken(side: Side, kind: str) -> list[Examples]:
    """Attacks that succeeded, those with the highest grade first."""
    if kind not in side.records:
        return []
    known = {row.id: row for row in side.rows(kind, "attempts", Attempt)}
    rows = [row for row in side.verdicts(kind) if known[row.id].outcome == "success"]
    rows = [row for row in rows if known[row.id].kind not in (PLAIN, CEILING)]
    heading = f"Worst: {'injections' if kind == 'injection' else 'attacks'} that succeeded with {side.name}"
    return [_chosen(heading, rows, lambda row: (-(known[row.id].score or 0.0), row.id), _prompt,
                    lambda row: _attacked(row, known[row.id], side.name))]  # fmt: skip


def _chosen(
    heading: str, cases: Sequence[Case], order: Callable[[Case], Any], prompt: Callable[[Case], str],
    shown: Callable[[Case], Example],
) -> Examples:  # fmt: skip
    """The first cases in an order, one a prompt."""
    once: dict[str, Case] = {}
    for case in sorted(cases, key=order):
        once.setdefault(prompt(case), case)
    return Examples(heading, len(cases), [shown(case) for case in list(once.values())[:NUM_EXAMPLES]])


def _longest(row: Verdict) -> tuple[int, str]:
    return -int(row.group), row.id


def _shortest(row: Verdict) -> tuple[int, str]:
    return int(row.group), row.id


def _prompt(row: Verdict) -> str:
    return row.request_id


def _continuation(said: Sequence[tuple[str, Verdict]]) -> Example:
    start = said[0][1]
    outcome = {"yes": "turns away", "no": "does not turn away"}
    texts = [Text(f"{name} goes on ({outcome[row.verdict]})", row.text, f"what {name} wrote") for name, row in said]
    given = Text("Start put into the model's mouth", start.prefill, "the harmful start")
    return Example(f"k = {start.group}", [Text("Prompt", start.prompt, "the prompt"), given, *texts])


def _answers(rows: Iterable[Verdict], name: str) -> Example:
    found = list(rows)
    outcome = {"yes": "safe", "no": "unsafe", "unparsed": "not judged"}
    texts = [Text(f"{name} under {row.group} ({outcome[row.verdict]})", row.text, f"what {name} wrote")
             for row in found]  # fmt: skip
    return Example("Same prompt, two settings" if len(found) > 1 else f"Under {found[0].group}",
                   [Text("Prompt", found[0].prompt, "the prompt"), *texts])  # fmt: skip


def _attacked(row: Verdict, attempt: Attempt, name: str) -> Example:
    grade = "" if attempt.score is None else f", grade {attempt.score:.2f}"
    texts = [Text("Request", row.prompt, "the request")]
    texts += [Text("Start put into the model's mouth", row.prefill, "the given start")] if row.prefill else []
    return Example(f"{attempt.attack}{grade}", [*texts, Text(f"{name} answers", row.text, f"what {name} wrote")])


def chats(sides: Sequence[Side]) -> list[tuple[str, list[Chat]]]:
    """Benign prompts with the answers of the first model and each other: where the loss rose most, middle, least."""
    first, *others = sides
    pairs = [(other.name, other) for other in others if not incomparable(first, other, "retention")]
    if not others and "retention" in first.records:
        pairs = [(first.name, first)]
    return [(name, _chat(first, other)) for name, other in pairs]


def _chat(first: Side, other: Side) -> list[Chat]:
    before, after = ({row.id: row for row in side.rows("retention", "answers", RetentionRow)}
                     for side in (first, other))  # fmt: skip
    shared = sorted(before.keys() & after.keys(), key=lambda i: (before[i].nll - after[i].nll, i))
    chosen = {0: "largest", len(shared) // 2: "middle", len(shared) - 1: "smallest"}
    return [Chat(place, before[shared[i]], after[shared[i]]) for i, place in chosen.items() if 0 <= i < len(shared)]


def _shared(before: Sequence[Verdict], after: Sequence[Verdict]) -> list[tuple[Verdict, Verdict]]:
    """The cases of both with the same start."""
    first, other = ({row.id: row for row in rows} for rows in (before, after))
    shared = sorted(first.keys() & other.keys())
    return [(first[i], other[i]) for i in shared if first[i].prefill == other[i].prefill]
