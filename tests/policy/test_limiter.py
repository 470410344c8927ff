"""Limits of a key: never more than the limit in any window, and a time to come back that is true."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.policy.keys import Key
from trimtab.policy.limiter import DAY_S, MAX_AGE_S, InProcessLimiter
from trimtab.policy.ports import Refused

NOON = 20_000 * DAY_S + DAY_S / 2


class Clock:
    """Stands in for the module ``time`` too, which is the only clock of the library that counts requests."""

    def __init__(self, now: float = NOON) -> None:
        self.now = now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("limits.storage.memory.time", clock)
    return clock


def _key(id: str = "k", **limits: Any) -> Key:
    return Key(id=id, sha256="0" * 64, **limits)


def _at_once(step: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives that never waits: nothing else runs between its checks and what it takes."""
    with pytest.raises(StopIteration) as caught:
        step.send(None)
    return caught.value.value


def _admit(limiter: InProcessLimiter, key: Key, tokens: int = 1) -> str:
    return str(_at_once(limiter.admit(key, tokens)))


def _try(limiter: InProcessLimiter, key: Key, tokens: int = 1) -> tuple[str, Refused | None]:
    """A ticket, or why there is none."""
    try:
        return _admit(limiter, key, tokens), None
    except Refused as refused:
        return "", refused


def _settle(limiter: InProcessLimiter, ticket: str, tokens: int) -> None:
    _at_once(limiter.settle(ticket, tokens))


def _refusal(limiter: InProcessLimiter, key: Key, tokens: int = 1) -> Refused:
    with pytest.raises(Refused) as caught:
        _admit(limiter, key, tokens)
    return caught.value


def test_requests_of_a_minute(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(requests_per_minute=2)
    _admit(limiter, key)
    clock.now += 20
    _admit(limiter, key)
    refused = _refusal(limiter, key)
    assert (refused.status, refused.reason, refused.retry_after_s) == (429, "requests_per_minute", 40)
    _admit(limiter, _key("other", requests_per_minute=2))
    clock.now += 40.5
    _admit(limiter, key)
    assert _refusal(limiter, key).retry_after_s == pytest.approx(19.5)


def test_a_refused_request_takes_nothing(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(requests_per_minute=2, tokens_per_minute=10, tokens_per_day=100)
    _admit(limiter, key, 8)
    for _ in range(5):
        assert _refusal(limiter, key, 8).reason == "tokens_per_minute"
    _admit(limiter, key, 2)
    assert _refusal(limiter, key, 0).reason == "requests_per_minute"
    assert limiter.budgets()["k"]["tokens"] == 10


def test_tokens_of_a_minute_are_the_bound_until_the_true_count_is_known(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(tokens_per_minute=100)
    ticket = _admit(limiter, key, 90)
    clock.now += 10
    refused = _refusal(limiter, key, 50)
    assert (refused.reason, refused.retry_after_s) == ("tokens_per_minute", 50)
    _settle(limiter, ticket, 30)
    _admit(limiter, key, 70)
    assert _refusal(limiter, key, 1).retry_after_s == 50
    clock.now += 50
    _admit(limiter, key, 30)
    assert _refusal(limiter, key, 1).retry_after_s == 10


def test_an_answer_that_broke_off_costs_what_it_took(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(tokens_per_minute=100, tokens_per_day=100, parallel=1)
    _settle(limiter, _admit(limiter, key, 100), 7)
    assert limiter.budgets()["k"]["tokens"] == 7
    _admit(limiter, key, 93)


def test_a_true_count_above_the_bound_is_charged(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(tokens_per_minute=100)
    _settle(limiter, _admit(limiter, key, 10), 95)
    assert _refusal(limiter, key, 10).reason == "tokens_per_minute"


def test_a_ticket_is_settled_once(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(parallel=2, tokens_per_day=100)
    first = _admit(limiter, key, 50)
    _admit(limiter, key, 50)
    for tokens in (20, 0, 10**6):
        _settle(limiter, first, tokens)
    assert limiter.budgets()["k"]["tokens"] == 70
    _admit(limiter, key, 30)
    assert _refusal(limiter, key).reason == "parallel"
    _settle(limiter, "k/unknown", 5)
    _settle(limiter, "nobody/unknown", 5)
    assert _refusal(limiter, key).reason == "parallel"


def test_requests_in_flight(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(parallel=1)
    ticket = _admit(limiter, key)
    refused = _refusal(limiter, key)
    assert (refused.status, refused.reason, refused.retry_after_s) == (429, "parallel", 1)
    _admit(limiter, _key("other", parallel=1))
    _settle(limiter, ticket, 1)
    _admit(limiter, key)


def test_a_lost_request_is_in_flight_no_more_but_stays_charged(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(parallel=1, tokens_per_day=100)
    lost = _admit(limiter, key, 60)
    clock.now += MAX_AGE_S - 1
    assert _refusal(limiter, key, 40).reason == "parallel"
    clock.now += 1
    _admit(limiter, key, 40)
    _settle(limiter, lost, 1)
    assert limiter.budgets()["k"]["tokens"] == 100
    assert _refusal(limiter, key).reason == "parallel"


def test_tokens_of_a_day_in_utc(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(tokens_per_day=100)
    _settle(limiter, _admit(limiter, key, 80), 80)
    refused = _refusal(limiter, key, 21)
    assert (refused.status, refused.reason, refused.retry_after_s) == (429, "tokens_per_day", DAY_S / 2)
    _admit(limiter, key, 20)
    clock.now = NOON + DAY_S / 2
    _admit(limiter, key, 100)


def test_what_is_reserved_of_a_day_may_come_back_soon(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(tokens_per_day=100)
    _admit(limiter, key, 80)
    assert _refusal(limiter, key, 30).retry_after_s == 1


def test_yesterdays_request_gives_nothing_back_to_today(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(tokens_per_day=100)
    clock.now = NOON + DAY_S / 2 - 1
    ticket = _admit(limiter, key, 100)
    clock.now += 2
    _admit(limiter, key, 60)
    _settle(limiter, ticket, 0)
    assert limiter.budgets()["k"]["tokens"] == 60


def test_a_days_budget_goes_on_after_a_restart(clock: Clock) -> None:
    key = _key(tokens_per_day=100)
    before = InProcessLimiter(clock.time)
    _admit(before, key, 70)
    after = InProcessLimiter(clock.time)
    after.restore(before.budgets())
    assert _refusal(after, key, 31).reason == "tokens_per_day"
    clock.now += DAY_S
    _admit(after, key, 100)


@pytest.mark.parametrize("limit", ["tokens_per_minute", "tokens_per_day"])
def test_what_can_never_fit_is_no_matter_of_time(clock: Clock, limit: str) -> None:
    refused = _refusal(InProcessLimiter(clock.time), _key(**{limit: 100}), 101)
    assert (refused.status, refused.reason, refused.param, refused.retry_after_s) == (400, limit, "max_tokens", None)


def test_a_key_without_limits_is_free(clock: Clock) -> None:
    limiter = InProcessLimiter(clock.time)
    for _ in range(500):
        _admit(limiter, _key(), 10**6)


STEPS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 7.0, 20.0, 59.5, 61.0]), st.integers(1, 12), st.floats(0, 1), st.booleans()),
    max_size=40,
)


@given(STEPS)
def test_no_minute_has_more_than_the_limit(steps: list[tuple[float, int, float, bool]]) -> None:
    clock = Clock()
    taken: list[tuple[float, int]] = []
    limiter, key = InProcessLimiter(clock.time), _key(tokens_per_minute=20, parallel=3)
    open_tickets: list[tuple[str, int]] = []
    for wait_s, bound, share, ends in steps:
        clock.now += wait_s
        if open_tickets and ends:
            ticket, at = open_tickets.pop(0)
            moment, old = taken[at]
            taken[at] = moment, int(old * share)
            _settle(limiter, ticket, taken[at][1])
        ticket, refused = _try(limiter, key, bound)
        if refused is None:
            open_tickets.append((ticket, len(taken)))
            taken.append((clock.now, bound))
        else:
            assert refused.reason == ("parallel" if len(open_tickets) == 3 else "tokens_per_minute")
    for end, _ in taken:
        assert sum(tokens for moment, tokens in taken if end - 60 < moment <= end) <= 20


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=12), st.integers(1, 20))
def test_the_time_to_come_back_is_true(past: list[tuple[int, int]], tokens: int) -> None:
    clock = Clock()
    limiter, key = InProcessLimiter(clock.time), _key(tokens_per_minute=20)
    for wait_s, bound in past:
        clock.now += wait_s
        _try(limiter, key, bound)
    refused = _try(limiter, key, tokens)[1]
    if refused is not None:
        wait = refused.retry_after_s
        assert wait is not None
        assert 1 <= wait <= 60
        clock.now += wait - 0.5
        if wait > 1:
            _refusal(limiter, key, tokens)
        clock.now += 0.5
        _admit(limiter, key, tokens)


def test_no_minute_has_more_requests_than_the_limit(clock: Clock) -> None:
    limiter, key = InProcessLimiter(clock.time), _key(requests_per_minute=5)
    admitted: list[float] = []
    for step in range(400):
        clock.now += (step * 7 % 13) / 2
        refused = _try(limiter, key)[1]
        if refused is None:
            admitted.append(clock.now)
        else:
            assert 1 <= (refused.retry_after_s or 0) <= 60
    assert len(admitted) > 50
    assert all(sum(end - 60 < moment <= end for moment in admitted) <= 5 for end in admitted)
