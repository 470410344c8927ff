"""Limits of each key in one process: requests and tokens a minute, requests in flight, tokens a day.

Requests are counted by the ``limits`` library (its moving window). Tokens aren't: what a request reserves is an upper
bound that its true count replaces, which the library can't do, and its memory keeps one entry for each unit. Here an
entry is one request with its tokens, exact in every minute. All is checked before anything is taken, without an
``await`` between, so that requests of one event loop can't pass each other.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trimtab.policy.keys import Key
from trimtab.policy.ports import Refused

MINUTE_S, DAY_S = 60.0, 86_400.0
MAX_AGE_S = 1800.0
"""A request that wasn't settled after this time is taken for lost: its place is free again."""
SOON_S = 1.0
"""When to come back for what ends with the requests in flight."""


@dataclass
class _Taken:
    """The tokens of a request: an upper bound until it is settled."""

    at: float
    tokens: int
    day: int
    """The day in UTC, counted from the epoch, whose budget they are of."""
    in_window: bool = True


@dataclass
class _Usage:
    """What a key has taken."""

    window: deque[_Taken] = field(default_factory=deque)
    """Requests of the last minute, the oldest first."""
    window_tokens: int = 0
    in_flight: dict[str, _Taken] = field(default_factory=dict)
    """By ticket, the oldest first."""
    lost: dict[str, _Taken] = field(default_factory=dict)
    """The same of requests without a place, which may be settled yet."""
    day: int = 0
    day_tokens: int = 0

    def catch_up(self, now: float, max_age_s: float) -> None:
        """Forget what has left the minute, the day and the longest time in flight."""
        while self.window and self.window[0].at <= now - MINUTE_S:
            old = self.window.popleft()
            old.in_window = False
            self.window_tokens -= old.tokens
        if (day := int(now // DAY_S)) > self.day:
            self.day, self.day_tokens = day, 0
        for unsettled in (self.in_flight, self.lost):
            while unsettled and next(iter(unsettled.values())).at <= now - max_age_s:
                del unsettled[next(iter(unsettled))]

    def take(self, ticket: str, tokens: int, now: float) -> None:
        taken = self.in_flight[ticket] = _Taken(now, tokens, self.day)
        self.window.append(taken)
        self.window_tokens += tokens
        self.day_tokens += tokens

    def settle(self, ticket: str, tokens: int) -> None:
        """Replace a request's bound; what was taken from a minute or a day that is over stays there."""
        taken = self.in_flight.pop(ticket, None) or self.lost.pop(ticket, None)
        if taken is None:
            return
        more, taken.tokens = tokens - taken.tokens, tokens
        if taken.in_window:
            self.window_tokens += more
        if taken.day == self.day:
            self.day_tokens += more

    def room_in_s(self, tokens: int, limit: int, now: float) -> float:
        """Seconds until so many tokens fit into the minute; 0: they do now."""
        excess = self.window_tokens + tokens - limit
        for taken in self.window:
            if excess <= 0:
                return 0.0
            excess -= taken.tokens
            if excess <= 0:
                return taken.at + MINUTE_S - now
        return 0.0

    def reserved(self) -> int:
        """Tokens of this day that requests in flight may give back."""
        return sum(taken.tokens for taken in self.in_flight.values() if taken.day == self.day)


class Allowance(NamedTuple):
    """What a limiter must know of a key."""

    id: str
    requests_per_minute: int | None
    tokens_per_minute: int | None
    parallel: int | None
    tokens_per_day: int | None

    @classmethod
    def of(cls, key: Key) -> Allowance:
        """That of a key."""
        return cls(key.id, key.requests_per_minute, key.tokens_per_minute, key.parallel, key.tokens_per_day)


class InProcessLimiter:
    """The limits of the keys that one event loop serves; across processes, an actor has one of these."""

    def __init__(self, clock: Callable[[], float] = time.time, max_age_s: float = MAX_AGE_S) -> None:
        """
        Args:
            clock: seconds since the epoch. The library that counts requests has no other than ``time.time``.
            max_age_s: after this time a request that wasn't settled is in flight no more; its tokens stay charged.
        """
        from limits.storage import MemoryStorage
        from limits.strategies import MovingWindowRateLimiter

        self._clock, self._max_age_s = clock, max_age_s
        self._requests = MovingWindowRateLimiter(MemoryStorage())
        self._usage: dict[str, _Usage] = {}

    async def admit(self, key: Key | Allowance, tokens: int) -> str:
        """Take a request with an upper bound of its tokens.

        Raises:
            Refused: 429 with when to come back; 400 where the bound alone is more than the key ever has.
        """
        now = self._clock()
        usage = self._usage.setdefault(key.id, _Usage())
        usage.catch_up(now, self._max_age_s)
        if key.parallel is not None and len(usage.in_flight) >= key.parallel:
            raise _refused("parallel", f"{key.parallel} requests in flight", SOON_S)
        _require_minute(usage, key.tokens_per_minute, tokens, now)
        _require_day(usage, key.tokens_per_day, tokens, now)
        self._count_request(key, now)
        ticket = f"{key.id}/{uuid.uuid4().hex}"
        usage.take(ticket, tokens, now)
        return ticket

    async def settle(self, ticket: str, tokens: int) -> None:
        """End a request with its true count; a ticket that was settled or is lost changes nothing."""
        usage = self._usage.get(ticket.rpartition("/")[0])
        if usage is not None:
            usage.catch_up(self._clock(), self._max_age_s)
            usage.settle(ticket, tokens)

    def lose(self, ticket: str) -> None:
        """Free the place of a request that nobody seems to work on; its bound stays charged unless it is settled."""
        usage = self._usage.get(ticket.rpartition("/")[0])
        if usage is not None and ticket in usage.in_flight:
            usage.lost[ticket] = usage.in_flight.pop(ticket)

    def budgets(self) -> dict[str, dict[str, int]]:
        """What each key has of its day, to ``restore`` after a restart; requests in flight count by their bound."""
        return {id: {"day": usage.day, "tokens": usage.day_tokens} for id, usage in self._usage.items()}

    def restore(self, budgets: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on with the days that ``budgets`` gave."""
        for id, budget in budgets.items():
            usage = self._usage.setdefault(id, _Usage())
            usage.day, usage.day_tokens = int(budget["day"]), int(budget["tokens"])

    def _count_request(self, key: Key | Allowance, now: float) -> None:
        from limits import RateLimitItemPerMinute

        if key.requests_per_minute is None:
            return
        limit = RateLimitItemPerMinute(key.requests_per_minute)
        if not self._requests.hit(limit, key.id):
            reset = self._requests.get_window_stats(limit, key.id).reset_time
            raise _refused("requests_per_minute", f"{key.requests_per_minute} requests a minute", reset - now)


def _require_minute(usage: _Usage, limit: int | None, tokens: int, now: float) -> None:
    if limit is None:
        return
    _require_possible("tokens_per_minute", f"{limit} tokens a minute", limit, tokens)
    wait_s = usage.room_in_s(tokens, limit, now)
    if wait_s > 0:
        raise _refused("tokens_per_minute", f"{limit} tokens a minute", wait_s)


def _require_day(usage: _Usage, limit: int | None, tokens: int, now: float) -> None:
    if limit is None:
        return
    _require_possible("tokens_per_day", f"{limit} tokens a day", limit, tokens)
    if usage.day_tokens + tokens > limit:
        may_fit = usage.day_tokens - usage.reserved() + tokens <= limit
        raise _refused("tokens_per_day", f"{limit} tokens a day", SOON_S if may_fit else DAY_S - now % DAY_S)


def _require_possible(reason: str, limit_text: str, limit: int, tokens: int) -> None:
    if tokens > limit:
        problem = f"this request may take {tokens} tokens, and the key has {limit_text}: ask for fewer by max_tokens"
        raise Refused(400, reason, problem, "max_tokens")


def _refused(reason: str, limit: str, retry_after_s: float) -> Refused:
    return Refused(429, reason, f"this key's limit of {limit} is reached", None, max(retry_after_s, SOON_S))
