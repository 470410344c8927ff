"""Limits that hold across replicas: one named actor counts for all, and each replica bounds what it works on itself.

The actor keeps what keys took of their day in a file, written at most once a second: its death forgets a second of a
budget and not the day. Ray starts it again when it dies, and requests are denied meanwhile; the minutes begin anew.

A replica with requests in flight says so at least every few seconds. One that is not heard of any more was killed, and
the places of its requests are free again; the tokens that they might have taken stay charged, unless it comes back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from trimtab.artifacts import write_text
from trimtab.policy.keys import Key
from trimtab.policy.limiter import Allowance, InProcessLimiter
from trimtab.policy.ports import Limiter, Refused, limiter_down

NAMESPACE = "trimtab"
SAVE_EVERY_S = 1.0
BUSY_RETRY_S = 1.0
SETTLE_AFTER_S = 0.005
"""So long a request that has ended waits for another's admission to go along with; a call costs milliseconds."""
BEAT_S, LOST_AFTER_S = 5.0, 20.0
"""How often a replica says that it is alive, and after how long a silence it is not."""
Refusal = tuple[int, str, str, str | None, float | None]
Ended = Sequence[tuple[str, int]]
"""(ticket, tokens) of requests that have ended."""
Asked = Sequence[tuple[tuple[str, int | None, int | None, int | None, int | None], int]]
"""(what the limiter must know of a key, tokens) of requests: plain values, which Ray hands over without pickling."""
Answers = list[str | Refusal]

logger = logging.getLogger("trimtab.serving")


@dataclass
class _Replica:
    """What the actor knows of one."""

    heard_at: float
    tickets: set[str] = field(default_factory=set)
    """Of its requests in flight."""


class Limits:
    """The actor: the limiter of all replicas. A refusal is a value here; an exception means that it failed."""

    def __init__(self, budgets: str) -> None:
        self._limiter = InProcessLimiter()
        self._file = Path(budgets)
        self._replicas: dict[str, _Replica] = {}
        self._saving: asyncio.Task[None] | None = None
        self._unsaved = False
        if self._file.is_file():
            self._limiter.restore(json.loads(self._file.read_text(encoding="utf-8")))

    async def step(self, replica: str, asked: Asked, ended: Ended) -> Answers:
        """Settle what has ended, then admit: for each request a ticket, or the parts of a ``Refused``."""
        mine = self._heard(replica).tickets
        for ticket, tokens in ended:
            await self._limiter.settle(ticket, tokens)
            mine.discard(ticket)
        answers = [await self._admit(Allowance(*allowance), tokens) for allowance, tokens in asked]
        mine.update(answer for answer in answers if isinstance(answer, str))
        if ended or any(isinstance(answer, str) for answer in answers):  # refusals change nothing
            self._save_soon()
        return answers

    def _heard(self, replica: str) -> _Replica:
        """Note that a replica lives, and free the places of those that don't."""
        now = monotonic()
        known = self._replicas.setdefault(replica, _Replica(now))
        known.heard_at = now
        for name in [name for name, other in self._replicas.items() if now - other.heard_at > LOST_AFTER_S]:
            lost = self._replicas.pop(name).tickets
            if lost:
                logger.warning("a replica is gone; the places of its %d requests are free again", len(lost))
            for ticket in lost:
                self._limiter.lose(ticket)
        return known

    async def _admit(self, key: Allowance, tokens: int) -> str | Refusal:
        try:
            if self._unsaved and key.tokens_per_day is not None:
                self._save()
            return await self._limiter.admit(key, tokens)
        except OSError as error:  # of a budget that can't be written down nothing is spent
            logger.error("the budgets can't be saved: %s", error.strerror)
            return _parts(limiter_down())
        except Refused as refused:
            return _parts(refused)

    async def ready(self) -> None:
        """Answer."""

    def _save_soon(self) -> None:
        if self._saving is None or self._saving.done():
            self._saving = asyncio.ensure_future(self._save_later())

    async def _save_later(self) -> None:
        await asyncio.sleep(SAVE_EVERY_S)
        try:
            self._save()
        except OSError as error:
            logger.error("the budgets can't be saved: %s", error.strerror)

    def _save(self) -> None:
        self._unsaved = True
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(self._file, json.dumps(self._limiter.budgets()))
        self._unsaved = False


def _parts(refused: Refused) -> Refusal:
    return refused.status, refused.reason, refused.message, refused.param, refused.retry_after_s


class RayLimiter:
    """The limiter of a replica: it asks the actor, which the first replica starts.

    One call at a time is on its way. What is asked meanwhile goes with the next, together with what has ended: requests
    come and go in bursts, since an engine's steps end several at once.
    """

    def __init__(self, name: str, budgets: Path) -> None:
        self._name, self._budgets = name, budgets
        self._id = uuid.uuid4().hex
        self._found: Any = None
        self._asked: list[tuple[Allowance, int, asyncio.Future[str | Refusal]]] = []
        self._ended: list[tuple[str, int]] = []
        self._calling: asyncio.Task[None] | None = None
        self._held = set[str]()
        self._beat: asyncio.TimerHandle | None = None

    @property
    def _actor(self) -> Any:
        if self._found is None:
            self._found = self._find()
        return self._found

    def _find(self) -> Any:
        import ray

        # "DEFAULT": not in the placement group of the replica that asks first, with which it would end.
        options = {"name": self._name, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached",
                   "max_restarts": -1, "num_cpus": 0, "scheduling_strategy": "DEFAULT"}  # fmt: skip
        return ray.remote(Limits).options(**options).remote(str(self._budgets))

    async def ready(self) -> None:
        """Wait until the actor answers: its start, and a replica's first call, take longer than a request may wait."""
        await self._actor.ready.remote()

    async def admit(self, key: Key, tokens: int) -> str:
        """As ``Limiter.admit``."""
        answer: asyncio.Future[str | Refusal] = asyncio.get_running_loop().create_future()
        self._asked.append((Allowance.of(key), tokens, answer))
        self._call()
        found = await answer
        if isinstance(found, str):
            return found
        raise Refused(*found)

    async def settle(self, ticket: str, tokens: int) -> None:
        """As ``Limiter.settle``; nobody waits for it."""
        self._ended.append((ticket, tokens))
        asyncio.get_running_loop().call_later(SETTLE_AFTER_S, self._call)

    def _call(self) -> None:
        if self._asked or self._ended:
            self._call_now()

    def _say_alive(self) -> None:
        """A call, be there nothing in it; not to an actor that somebody has ended."""
        if self._found is not None:
            self._call_now()

    def _call_now(self) -> None:
        """Unless a call is on its way."""
        if self._calling is None or self._calling.done():
            self._calling = asyncio.ensure_future(self._calls())

    async def _calls(self) -> None:
        """Ask until nobody waits; while requests are in flight, again in a while."""
        while await self._step() and (self._asked or self._ended):
            pass
        if self._beat is not None:
            self._beat.cancel()
        self._beat = asyncio.get_running_loop().call_later(BEAT_S, self._say_alive) if self._held else None

    async def _step(self) -> bool:
        """One call with everything that waits; whether it succeeded."""
        asked, self._asked = [item for item in self._asked if not item[2].done()], []
        ended, self._ended = self._ended, []
        try:
            what = [(tuple(key), tokens) for key, tokens, _ in asked]
            found = await self._actor.step.remote(self._id, what, ended)
        except Exception as error:
            self._failed(asked, ended, error)
            return False
        self._held.difference_update(ticket for ticket, _ in ended)
        for (_, _, answer), result in zip(asked, found, strict=True):
            if isinstance(result, str):
                self._held.add(result)
            if not answer.done():
                answer.set_result(result)
            elif isinstance(result, str):  # who asked has gone
                self._ended.append((result, 0))
        return True

    def _failed(self, asked: Sequence[tuple[Any, int, asyncio.Future[Any]]], ended: Ended, error: Exception) -> None:
        """Everybody who waits is told; what has ended goes with a later call, and isn't settled twice."""
        from ray.exceptions import ActorDiedError

        if isinstance(error, ActorDiedError):  # for good: somebody ended it
            self._found = None
        self._ended = [*ended, *self._ended]
        for _, _, answer in (*asked, *self._asked):
            if not answer.done():
                answer.set_exception(error)
        self._asked = []


def end_limits(name: str) -> None:
    """End the actor; what keys took today stays in its file."""
    import ray

    try:
        actor = ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return
    ray.kill(actor)


class Bounded:
    """A limiter that lets only so many requests into this replica at a time, whosever they are."""

    def __init__(self, inner: Limiter, most: int, changed: Callable[[int], None] = lambda ongoing: None) -> None:
        """
        Args:
            most: requests in flight.
            changed: called with their number when it changes.
        """
        self._inner, self._most, self._changed = inner, most, changed
        self._ongoing = 0

    async def admit(self, key: Key, tokens: int) -> str:
        """As ``Limiter.admit``.

        Raises:
            Refused: 429, the replica is full.
        """
        if self._ongoing >= self._most:
            raise Refused(429, "overloaded", "the server has all the requests it can take", None, BUSY_RETRY_S)
        self._count(1)
        try:
            return await self._inner.admit(key, tokens)
        except BaseException:
            self._count(-1)
            raise

    async def settle(self, ticket: str, tokens: int) -> None:
        """As ``Limiter.settle``."""
        self._count(-1)
        await self._inner.settle(ticket, tokens)

    def _count(self, more: int) -> None:
        self._ongoing += more
        self._changed(self._ongoing)
