"""How many requests may be in flight: fewer after a refusal, never more than allowed, never none."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.judging.limit import AdaptiveLimit


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_refusals_of_one_moment_halve_once() -> None:
    clock = _Clock()
    limit = AdaptiveLimit(16, clock)
    for _ in range(10):
        limit.saw(429)
    assert (limit.limit, limit.num_refused) == (8.0, 10)
    clock.now += 1.0
    limit.saw(503)
    assert limit.limit == 4.0


def test_a_round_of_successes_allows_one_more_up_to_the_most() -> None:
    limit = AdaptiveLimit(6, _Clock())
    limit.saw(429)
    for _ in range(4):
        limit.saw(200)
    assert 4.0 <= limit.limit < 4.5
    for _ in range(100):
        limit.saw(200)
    assert limit.limit == 6.0


@given(most=st.integers(1, 20), seen=st.lists(st.tuples(st.sampled_from([200, 400, 429, 500]), st.floats(0, 3))))
def test_limit_stays_between_one_and_the_most(most: int, seen: list[tuple[int, float]]) -> None:
    clock = _Clock()
    limit = AdaptiveLimit(most, clock)
    for status, seconds in seen:
        clock.now += seconds
        before = limit.limit
        limit.saw(status)
        assert 1.0 <= limit.limit <= most
        if status in (400, 500):
            assert limit.limit == before


@pytest.mark.parametrize(("most", "statuses", "expected"), [(5, [], 5), (8, [429], 4), (3, [429], 1), (1, [429], 1)])
def test_gate_lets_so_many_in_and_everybody_in_the_end(most: int, statuses: list[int], expected: int) -> None:
    async def run() -> tuple[int, int]:
        limit = AdaptiveLimit(most)
        for status in statuses:
            limit.saw(status)
        inside = highest = through = 0

        async def one() -> None:
            nonlocal inside, highest, through
            async with limit:
                inside += 1
                highest = max(highest, inside)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                inside -= 1
                through += 1

        await asyncio.gather(*(one() for _ in range(20)))
        return highest, through

    assert asyncio.run(run()) == (expected, 20)


def test_failure_inside_gives_the_place_back() -> None:
    async def run() -> None:
        limit = AdaptiveLimit(1)
        for _ in range(3):
            with pytest.raises(RuntimeError):
                async with limit:
                    raise RuntimeError

    asyncio.run(run())
