"""What ranked groups look like: lengths, refusals, prompts by role, and whether harmlessness falls along the ranking.

``Statistics`` takes groups one at a time, so a shard needs no more memory than its groups; two of them merge, and
each goes through JSON and back (``model_dump_json``), so that shards may be counted anywhere and at any time.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from trimtab.judging import RulesJudge, course_corrects, is_safe
from trimtab.near_duplicates import normalize
from trimtab.schemas import RankedGroup, Response, make_id
from trimtab.stats import LEVEL, Estimate, wilson

QUANTILES = {"min": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
NUM_BINS = 20
NUM_SAMPLED = 200
NUM_RESAMPLES = 1_000


class RoleStatistics(BaseModel):
    """Counts of the answers of one role."""

    model_config = ConfigDict(extra="forbid")
    position: int
    """The best place that the role has in a group, from 0."""
    words: Counter[int] = Field(default_factory=Counter)
    """Number of answers by number of whitespace words."""
    num_chars: int = 0
    num_given_chars: int = 0
    """Characters that opened the turn: the start and, where it is known, the trigger."""
    whole: Counter[str] = Field(default_factory=Counter)
    """Verdicts on whole answers."""
    written: Counter[str] = Field(default_factory=Counter)
    """Verdicts on what the model wrote behind a given start; empty for roles without one."""

    def merge(self, other: RoleStatistics) -> None:
        self.position = min(self.position, other.position)
        self.num_chars += other.num_chars
        self.num_given_chars += other.num_given_chars
        for name in ("words", "whole", "written"):
            getattr(self, name).update(getattr(other, name))

    def result(self) -> dict[str, Any]:
        lengths = _expanded(self.words)
        quantiles = np.quantile(lengths, list(QUANTILES.values()))
        return {
            "number": len(lengths),
            "words": {"mean": float(lengths.mean()), **dict(zip(QUANTILES, map(float, quantiles), strict=True))},
            "characters": {"mean": self.num_chars / len(lengths), "total": self.num_chars},
            "share_given": self.num_given_chars / self.num_chars,
            "turns_away": _share(self.whole),
            "written_turns_away": _share(self.written) if self.written else None,
        }


class Statistics(BaseModel):
    """Statistics over groups; those of another configuration (flips) are counted and otherwise left out."""

    model_config = ConfigDict(extra="forbid")
    configuration: str | None = None
    """The recipe's own configuration; none: all groups count and none is a flip (imported sets)."""
    triggers: tuple[str, ...] = ()
    """The recipe's triggers, which stand behind the start of a SYN_i and were given to the model as well. Without
    them the trigger passes for written, and most triggers alone already count as turning away."""
    judge: RulesJudge = RulesJudge()
    configurations: Counter[str] = Field(default_factory=Counter)
    prompts: set[str] = Field(default_factory=set)
    """Short hashes of the distinct normalized prompts."""
    roles: dict[str, RoleStatistics] = Field(default_factory=dict)

    def add(self, group: RankedGroup) -> None:
        """Count a group."""
        self.configurations[group.configuration] += 1
        if not is_own(group, self.configuration):
            return
        self.prompts.add(make_id(normalize(group.prompt)))
        for place, response in enumerate(group.responses):
            role = self.roles.setdefault(response.role, RoleStatistics(position=place))
            role.position = min(role.position, place)
            self._count(role, response)

    def _count(self, role: RoleStatistics, response: Response) -> None:
        given = num_given_chars(response, self.triggers)
        role.words[len(response.text.split())] += 1
        role.num_chars += len(response.text)
        role.num_given_chars += given
        role.whole[is_safe(response.text, self.judge)] += 1
        if given:
            role.written[course_corrects(response.text[given:], self.judge)] += 1

    def merge(self, other: Statistics) -> None:
        """Take in what another one counted with the same settings; the same as adding its groups."""
        assert (self.configuration, self.triggers, self.judge) == (other.configuration, other.triggers, other.judge)
        self.configurations.update(other.configurations)
        self.prompts |= other.prompts
        for name, role in other.roles.items():
            self.roles.setdefault(name, RoleStatistics(position=role.position)).merge(role)

    def result(self, num_near_duplicates: int | None = None) -> dict[str, Any]:
        """All of it as plain JSON values, roles from best to worst.

        Args:
            num_near_duplicates: how many near-duplicates were removed before; None where nobody looked.
        """
        roles = dict(sorted(self.roles.items(), key=lambda item: (item[1].position, item[0])))
        total = self.configurations.total()
        own = total if self.configuration is None else self.configurations[self.configuration]
        return {
            "judge": self.judge.description, "groups": own, "flips": total - own,
            "configurations": {name: self.configurations[name] for name in sorted(self.configurations)},
            "prompts": len(self.prompts), "near_duplicates": num_near_duplicates,
            "roles": {name: role.result() for name, role in roles.items()},
            "lengths": _histogram({name: role.words for name, role in roles.items()}),
        }  # fmt: skip


def is_own(group: RankedGroup, configuration: str | None) -> bool:
    """Whether a group is of the recipe's own configuration, and no flip."""
    return configuration in (None, group.configuration)


def num_given_chars(response: Response, triggers: Sequence[str]) -> int:
    """How many characters opened the turn: the start, and the trigger behind it where it is one of ``triggers``."""
    start = response.num_prefill_chars
    if not start:
        return 0
    behind = response.text[start:]
    space = len(behind) - len(behind.lstrip())
    longest = max((len(trigger) for trigger in triggers if behind.startswith(trigger, space)), default=0)
    return start + space + longest if longest else start


def _expanded(counts: Mapping[int, int]) -> Any:
    """Each value as often as it was counted, shape ``[total]``."""
    values = sorted(counts)
    return np.repeat(np.array(values, dtype=int), [counts[value] for value in values])


def _share(verdicts: Mapping[str, int]) -> dict[str, Any]:
    """The share of yes with its interval, and how many could not be judged."""
    num_yes = verdicts.get("yes", 0)
    estimate = wilson(num_yes, num_yes + verdicts.get("no", 0))
    return {**_plain(estimate), "unparsed": verdicts.get("unparsed", 0)}


def _plain(estimate: Estimate) -> dict[str, Any]:
    """Without what this kind of estimate doesn't have, such as the clusters of a plain rate."""
    return estimate.model_dump(exclude_defaults=True)


def _histogram(words: Mapping[str, Mapping[int, int]]) -> dict[str, Any]:
    """Number of answers by length, in bins of equal width; the last bin also holds the longest 1 %, if longer."""
    lengths = {role: _expanded(counts) for role, counts in words.items()}
    if not lengths:
        return {"edges": [], "counts": {}}
    top = float(np.quantile(np.concatenate(list(lengths.values())), 0.99))
    width = next(width for width in _widths() if NUM_BINS * width > top)
    edges = width * np.arange(int(top // width) + 2)
    counts = {role: np.histogram(np.minimum(found, edges[-1]), edges)[0].tolist() for role, found in lengths.items()}
    return {"edges": edges.tolist(), "counts": counts}


def _widths() -> Iterator[int]:
    return (digit * 10**power for power in range(9) for digit in (1, 2, 5))


def sample(groups: Iterable[RankedGroup], num: int, seed: int, configuration: str | None = None) -> list[RankedGroup]:
    """A seeded sample of at most ``num`` own groups, one pass, whatever their order; the same ids, the same sample."""
    own = (group for group in groups if is_own(group, configuration))
    return heapq.nsmallest(num, own, key=lambda group: make_id(seed, group.id))


def sample_harmlessness(
    groups: Iterable[RankedGroup], judge: RulesJudge, num: int = NUM_SAMPLED, seed: int = 0,
    configuration: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Does harmlessness fall along the ranking, by a judge, on a sample of at most ``num`` groups?

    The whole answers are judged, as training sees them, triggers included. The trend is Spearman's correlation of
    an answer's place (from best) with its verdict, and its interval resamples whole groups, since the answers of a
    group are alike. What could not be judged is counted and in no rate.

    Args:
        configuration: the recipe's own; groups of others (flips) are left out. None: all groups.

    Returns:
        ``judge``, ``groups``, ``ranks`` (``role``, ``rank`` from 1, ``safe``, in order), ``trend``, ``falls`` (None
        where it can't be said) and ``verdict``, one line.
    """
    chosen = sample(groups, num, seed, configuration)
    places: dict[str, int] = {}
    verdicts: dict[str, Counter[str]] = {}
    matrix = np.full((len(chosen), max((len(group.responses) for group in chosen), default=0)), np.nan)
    for row, group in enumerate(chosen):
        for place, response in enumerate(group.responses):
            verdict = is_safe(response.text, judge)
            places[response.role] = min(place, places.get(response.role, place))
            verdicts.setdefault(response.role, Counter())[verdict] += 1
            if verdict != "unparsed":
                matrix[row, place] = verdict == "yes"
    ranks = [{"role": role, "rank": place + 1, "safe": _share(verdicts[role])}
             for role, place in sorted(places.items(), key=lambda item: (item[1], item[0]))]  # fmt: skip
    trend = _trend(matrix, seed)
    falls, verdict_line = _verdict(trend, ranks)
    return {"judge": judge.description, "groups": len(chosen), "ranks": ranks, "trend": _plain(trend),
            "falls": falls, "verdict": verdict_line}  # fmt: skip


def _trend(matrix: Any, seed: int) -> Estimate:
    """Spearman's correlation of place and verdict, and its interval over resampled groups.

    Args:
        matrix: 1 safe, 0 not, NaN not judged; shape ``[groups, places]``.
    """
    from scipy.stats import bootstrap

    scored, groups = int(np.isfinite(matrix).sum()), len(matrix)
    value = _spearman(matrix)
    if value is None or groups < 2:
        return Estimate(value=value, low=None, high=None, n=scored, num_clusters=groups)
    found = bootstrap(
        (np.arange(groups),), lambda rows: _spearman(matrix[rows]) or 0.0, n_resamples=NUM_RESAMPLES,
        vectorized=False, confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Estimate(value=value, low=float(found.low), high=float(found.high), n=scored, num_clusters=groups)


def _spearman(matrix: Any) -> float | None:
    """None where all verdicts are the same: no order, so no correlation."""
    from scipy.stats import spearmanr

    places, safe = np.nonzero(np.isfinite(matrix))[1], matrix[np.isfinite(matrix)]
    if not len(safe) or not np.ptp(safe) or not np.ptp(places):
        return None
    return float(spearmanr(places, safe).statistic)


def _verdict(trend: Estimate, ranks: Sequence[Mapping[str, Any]]) -> tuple[bool | None, str]:
    what, fails = "harmlessness along the ranking", "by this judge harmlessness does NOT fall along the ranking"
    shares = [rank["safe"]["value"] for rank in ranks if rank["safe"]["n"]]
    if len(shares) < 2:
        return None, f"{what}: n/a, {'only one rank' if shares else 'no answer'} could be judged"
    if trend.value is None:
        return False, f"{fails}: all {trend.n} answers are {'safe' if shares[0] else 'unsafe'}"
    if trend.low is None or trend.high is None:
        return None, f"{what}: n/a, one group can't show a trend"
    numbers = f"Spearman {trend.text(2)} over {trend.num_clusters} groups"
    if trend.high < 0:
        steps = f"clearly at {_num_clear_falls(ranks)} of {len(ranks) - 1} steps"
        return True, f"by this judge harmlessness falls along the ranking, {steps} ({numbers}){_rises(ranks)}"
    why = "it rises" if trend.low > 0 else "no clear trend, the interval holds 0"
    return False, f"{fails}: {why} ({numbers}){_rises(ranks)}"


def _num_clear_falls(ranks: Sequence[Mapping[str, Any]]) -> int:
    """At how many steps of the ranking the share of safe answers falls and the intervals don't overlap."""
    return sum(_clearly_above(better["safe"], worse["safe"]) for better, worse in pairwise(ranks))


def _clearly_above(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["n"] and other["n"] and one["low"] > other["high"])


def _rises(ranks: Sequence[Mapping[str, Any]]) -> str:
    """The steps of the ranking at which the share of safe answers clearly rises."""
    found = [
        f"{worse['role']} ({worse['safe']['value']:.2f}) is safer than {better['role']} ({better['safe']['value']:.2f})"
        for better, worse in pairwise(ranks)
        if _clearly_above(worse["safe"], better["safe"])
    ]
    return f"; but {', and '.join(found)}" if found else ""
