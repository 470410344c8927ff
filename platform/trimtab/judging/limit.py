"""How many requests may be in flight: fewer while the server says that it is too many, then slowly more again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

TOO_MANY = (429, 503)
SETTLE_S = 1.0
"""Within so long after a step back, further refusals are of the same crowd and no reason for another one."""


class AdaptiveLimit:
    """An ``async with`` gate: additive increase, multiplicative decrease, as TCP keeps its window.

    Starts at ``most`` and never goes above it or below 1.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.limit = most, float(most)
        self.num_refused = 0
        self._clock = clock
        self._stepped_back = float("-inf")
        self._busy = 0
        self._free = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._free:
            await self._free.wait_for(lambda: self._busy < int(self.limit))
            self._busy += 1

    async def __aexit__(self, *exc: object) -> None:
        async with self._free:
            self._busy -= 1
            self._free.notify_all()

    def saw(self, status: int) -> None:
        """Take notice of a response: half as many after a refusal, one more after a round of successes."""
        if status in TOO_MANY:
            self.num_refused += 1
            if self._clock() - self._stepped_back >= SETTLE_S:
                self._stepped_back, self.limit = self._clock(), max(1.0, self.limit / 2)
        elif status < 400:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
