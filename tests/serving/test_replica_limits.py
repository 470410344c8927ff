"""The limits' actor without Ray around it, and the bound of one replica."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trimtab.policy.keys import Key
from trimtab.policy.limiter import Allowance, InProcessLimiter
from trimtab.policy.ports import Refused
from trimtab.serving import limits
from trimtab.serving.limits import LOST_AFTER_S, SETTLE_AFTER_S, Bounded, Limits, RayLimiter

KEY = Key(id="k", sha256="0" * 64, tokens_per_day=100)


def test_a_days_budget_outlives_the_actor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SAVE_EVERY_S", 0.01)
    path = tmp_path / "new" / "budgets.json"

    async def spend() -> None:
        actor = Limits(str(path))
        ticket = await _admit(actor, 90)
        assert isinstance(ticket, str)
        await actor.step("replica", [], [(ticket, 70)])
        await asyncio.sleep(0.1)

    asyncio.run(spend())
    assert json.loads(path.read_text(encoding="utf-8"))["k"]["tokens"] == 70
    again = Limits(str(path))
    assert isinstance(asyncio.run(_admit(again, 20)), str)
    refusal = asyncio.run(_admit(again, 20))
    assert refusal[:2] == (429, "tokens_per_day")


async def _admit(actor: Limits, tokens: int, key: Key = KEY, replica: str = "replica") -> str | limits.Refusal:
    (answer,) = await actor.step(replica, [(tuple(Allowance.of(key)), tokens)], [])
    return answer


def test_a_budget_that_cannot_be_written_down_is_not_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of keys without a budget, in the same call, are."""
    monkeypatch.setattr(limits, "SAVE_EVERY_S", 0.01)
    (tmp_path / "file").write_text("no folder", encoding="utf-8")

    async def spend() -> None:
        actor = Limits(str(tmp_path / "file" / "budgets.json"))
        assert isinstance(await _admit(actor, 10), str)
        await asyncio.sleep(0.1)
        without = Allowance.of(KEY.model_copy(update={"tokens_per_day": None}))
        answers = await actor.step("replica", [(tuple(without), 10), (tuple(Allowance.of(KEY)), 10)], [])
        assert isinstance(answers[0], str)
        assert answers[1][:2] == (503, "limiter_down")

    asyncio.run(spend())


class Calls:
    """The actor's handle: calls go to an actor in this process, or fail."""

    def __init__(self, path: Path) -> None:
        self.limits, self.seen = Limits(str(path)), list[str]()
        self.fails, self.delay_s = False, 0.0

    def __getattr__(self, name: str) -> Any:
        def remote(*args: Any) -> Any:
            self.seen.append(name)
            return asyncio.ensure_future(self._called(name, *args))

        return SimpleNamespace(remote=remote)

    async def _called(self, name: str, *args: Any) -> Any:
        await asyncio.sleep(self.delay_s)
        if self.fails:
            raise ConnectionError("the actor is away")
        return await getattr(self.limits, name)(*args)


ALONE = KEY.model_copy(update={"parallel": 1})


def _replica(actor: Calls, tmp_path: Path) -> RayLimiter:
    limiter = RayLimiter("name", tmp_path)
    limiter._found = actor
    return limiter


def test_an_ended_request_is_settled_with_the_next_admission_or_soon(tmp_path: Path) -> None:
    actor = Calls(tmp_path / "budgets.json")

    async def ask() -> None:
        limiter = _replica(actor, tmp_path)
        await limiter.settle(await limiter.admit(ALONE, 10), 10)
        second = await limiter.admit(ALONE, 10)
        assert len(actor.seen) == 2
        await limiter.settle(second, 10)
        await asyncio.sleep(4 * SETTLE_AFTER_S)
        assert len(actor.seen) == 3
        assert isinstance(await _admit(actor.limits, 10, ALONE), str)

    asyncio.run(ask())


def test_what_is_asked_at_once_is_one_call_and_each_gets_its_own_answer(tmp_path: Path) -> None:
    actor = Calls(tmp_path / "budgets.json")

    async def ask() -> None:
        limiter = _replica(actor, tmp_path)
        found = await asyncio.gather(*(limiter.admit(ALONE, 10) for _ in range(5)), return_exceptions=True)
        assert isinstance(found[0], str)
        assert [error.reason for error in found[1:] if isinstance(error, Refused)] == ["parallel"] * 4
        assert len(actor.seen) == 1

    asyncio.run(ask())


def test_a_settlement_that_did_not_get_through_goes_with_the_next(tmp_path: Path) -> None:
    actor = Calls(tmp_path / "budgets.json")

    async def ask() -> None:
        limiter = _replica(actor, tmp_path)
        await limiter.settle(await limiter.admit(ALONE, 10), 10)
        actor.fails = True
        with pytest.raises(ConnectionError):
            await limiter.admit(ALONE, 10)
        actor.fails = False
        assert isinstance(await limiter.admit(ALONE, 10), str)

    asyncio.run(ask())


def test_who_went_away_while_asking_holds_no_place(tmp_path: Path) -> None:
    actor = Calls(tmp_path / "budgets.json")

    async def ask() -> None:
        limiter = _replica(actor, tmp_path)
        actor.delay_s = 0.05
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(limiter.admit(ALONE, 10), 0.01)
        await asyncio.sleep(0.2)
        assert isinstance(await limiter.admit(ALONE, 10), str)

    asyncio.run(ask())


def test_a_killed_replicas_places_are_free_again_and_its_tokens_stay_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(limits, "monotonic", lambda: clock.now)
    actor = Limits(str(tmp_path / "budgets.json"))

    async def die() -> None:
        lost = await _admit(actor, 60, ALONE, "killed")
        assert isinstance(lost, str)
        clock.now += LOST_AFTER_S
        assert (await _admit(actor, 30, ALONE))[1] == "parallel"
        clock.now += 1
        assert (await _admit(actor, 50, ALONE))[1] == "tokens_per_day"
        place = await _admit(actor, 40, ALONE)
        assert isinstance(place, str)
        await actor.step("killed", [], [(lost, 10)])  # it had only stood still
        assert (await _admit(actor, 50, ALONE))[1] == "parallel"
        await actor.step("replica", [], [(place, 40)])
        assert isinstance(await _admit(actor, 50, ALONE), str)

    asyncio.run(die())


def test_a_replica_with_requests_in_flight_says_that_it_is_alive_and_an_idle_one_is_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BEAT_S", 0.02)
    monkeypatch.setattr(limits, "LOST_AFTER_S", 0.2)
    actor = Calls(tmp_path / "budgets.json")

    async def hold() -> None:
        limiter = _replica(actor, tmp_path)
        ticket = await limiter.admit(ALONE, 10)
        await asyncio.sleep(0.5)
        assert (await _admit(actor.limits, 10, ALONE, "other"))[1] == "parallel"
        await limiter.settle(ticket, 10)
        await asyncio.sleep(0.1)
        calls = len(actor.seen)
        await asyncio.sleep(0.1)
        assert len(actor.seen) == calls
        assert isinstance(await _admit(actor.limits, 10, ALONE, "other"), str)

    asyncio.run(hold())


def test_a_settlement_that_did_not_get_through_goes_with_the_next_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BEAT_S", 0.02)
    actor = Calls(tmp_path / "budgets.json")

    async def ask() -> None:
        limiter = _replica(actor, tmp_path)
        ticket = await limiter.admit(ALONE, 10)
        actor.fails = True
        await limiter.settle(ticket, 10)
        await asyncio.sleep(4 * SETTLE_AFTER_S)
        actor.fails = False
        await asyncio.sleep(0.2)
        assert isinstance(await _admit(actor.limits, 10, ALONE, "other"), str)

    asyncio.run(ask())


def test_a_full_replica_refuses_and_a_settled_request_makes_room() -> None:
    seen: list[int] = []

    async def fill() -> None:
        bounded = Bounded(InProcessLimiter(), 2, seen.append)
        tickets = [await bounded.admit(KEY, 1) for _ in range(2)]
        with pytest.raises(Refused) as refused:
            await bounded.admit(KEY, 1)
        assert (refused.value.status, refused.value.reason, refused.value.retry_after_s) == (429, "overloaded", 1.0)
        await bounded.settle(tickets[0], 1)
        await bounded.admit(KEY, 1)

    asyncio.run(fill())
    assert seen == [1, 2, 1, 2]


def test_what_the_key_refuses_takes_no_place_in_the_replica() -> None:
    async def refuse() -> None:
        bounded = Bounded(InProcessLimiter(), 1)
        with pytest.raises(Refused, match="101 tokens"):
            await bounded.admit(KEY, 101)
        await bounded.admit(KEY, 1)

    asyncio.run(refuse())
