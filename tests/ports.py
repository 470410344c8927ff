"""Ports for endpoints of tests, where nobody else takes them between the choice and the start."""

from __future__ import annotations

import contextlib
import random
import socket

CHOICE = range(20_000, 30_000)
"""Above those of Ray's workers, and below those of Serve's replicas and those that the kernel gives away: a Ray that is
started meanwhile takes dozens of the latter."""


def serving_port() -> int:
    """A port of loopback that nothing listens on now.

    Raises:
        OSError: none of a hundred is free.
    """
    for port in random.SystemRandom().sample(CHOICE, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")
