"""The audit log: one JSON line for each decision, who and what and how much; never a text, never a secret.

Several replicas may append to one file: a line is one ``write`` at the end of the file, so lines don't mix.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from trimtab.config import InputError
from trimtab.policy.ports import Event

MAX_FIELD_CHARS = 200
"""A text of an event is cut to this; a line stays far below what a file system writes at once."""


class NoAudit:
    """No log: for a server that isn't asked to keep one."""

    def write(self, event: Event) -> None:
        """Keep nothing."""


class AuditFile:
    """An append-only file of JSON lines that only its owner can read."""

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """
        Raises:
            InputError: the file can't be opened for appending.
        """
        self._path, self._now = path, now
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._descriptor = self._open()
        except OSError as error:
            problem = f"can't be appended to ({error.strerror})"
            raise InputError("audit", path, problem, "choose a file that can be written") from error

    def write(self, event: Event) -> None:
        """Append one event as one line, or, where the disk takes only a part of it, fail.

        Raises:
            OSError: it can't be written.
        """
        values = {"time": self._now().isoformat(timespec="milliseconds"), **dataclasses.asdict(event)}
        line = json.dumps({name: _cut(value) for name, value in values.items()}) + "\n"
        raw = line.encode()
        self._reopen_if_moved()
        written = os.write(self._descriptor, raw)
        if written < len(raw):
            os.write(self._descriptor, b"\n")  # the next line begins on its own
            raise OSError(f"{written} of {len(raw)} bytes of an audit line were written")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self._path, flags, 0o600)

    def _reopen_if_moved(self) -> None:
        """Go on in a new file where the old one was moved away, as a log rotation does."""
        try:
            there = os.stat(self._path).st_ino
        except FileNotFoundError:
            there = None
        if there != os.fstat(self._descriptor).st_ino:
            before, self._descriptor = self._descriptor, self._open()
            os.close(before)


def _cut(value: object) -> object:
    return value[:MAX_FIELD_CHARS] if isinstance(value, str) else value
