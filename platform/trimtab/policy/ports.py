"""What the gate needs from outside: limits, audit and metrics, as protocols, and the one error that it answers with.

``trimtab.policy`` has each of them for one process; ``trimtab.serving`` has those that hold across replicas.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from trimtab.policy.keys import Key

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Refused(Exception):
    """A request that doesn't pass: what the caller is told, in OpenAI's error format, and what is counted."""

    def __init__(
        self, status: int, reason: str, message: str, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        """The HTTP status: 400, 401, 403, 404, 405, 408, 411, 413, 415, 429 or 503."""
        self.reason = reason
        """A short name from a closed list, such as ``requests_per_minute``: the error's code and the metric's label."""
        self.message = message
        self.param = param
        """The field that it is about."""
        self.retry_after_s = retry_after_s
        """When to come back; the header is whole seconds, at least 1."""


def limiter_down() -> Refused:
    """What a request is told when its limits can't be checked."""
    return Refused(503, "limiter_down", "limits can't be checked; come back", retry_after_s=5)


class Limiter(Protocol):
    """Requests and tokens a minute, requests in flight and tokens a day, for each key."""

    async def admit(self, key: Key, tokens: int) -> str:
        """Take a request with an upper bound of its tokens (prompt and answer) from the key's limits.

        Returns:
            A ticket to settle it by.

        Raises:
            Refused: 429, with when to come back.
            Exception: anything else means that the limiter is dead; the gate then denies with 503.
        """

    async def settle(self, ticket: str, tokens: int) -> None:
        """End a request: what it took in truth replaces the bound, and its place in flight is free. Once a ticket."""


@dataclass(frozen=True)
class Event:
    """What is written down of a request; never its text, never a secret."""

    request_id: str
    key_id: str
    """The key's public id; ``-``: no key, or one that isn't known."""
    decision: str
    """``allowed``, or the reason of the refusal."""
    status: int
    preset: str = ""
    safety_hash: str = ""
    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    first_token_s: float | None = None
    """Seconds to the first chunk of the answer; None: there was none."""
    finished: bool = True
    """False: the client left, or the engine broke off, before the end."""


class Audit(Protocol):
    """An append-only log of decisions."""

    def write(self, event: Event) -> None:
        """Append one event.

        Raises:
            OSError: it can't be written; the gate then denies with 503, since what isn't recorded isn't allowed.
        """


class Metrics(Protocol):
    """Counters and histograms of requests."""

    def started(self, key_id: str, preset: str) -> None:
        """A request goes to the engine."""

    def ended(self, event: Event) -> None:
        """A request was answered or refused."""
