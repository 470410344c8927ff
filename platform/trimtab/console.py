"""What the user sees: one progress line for each long step, and nothing of the libraries' noise.

``quiet(log)`` points file descriptors 1 and 2 of this process (and of all it starts) at a log file
and keeps the real terminal for ``say``, ``table`` and ``progress``. Ray's own messages, vLLM's
start-up text, compiler output and forwarded worker logs therefore land in the named file.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PLAIN_INTERVAL_S = 10.0
POLL_S = 1.0
_terminal: Console | None = None


def _console() -> Console:
    global _terminal
    if _terminal is None:
        from rich.console import Console

        _terminal = Console(highlight=False, soft_wrap=True)
    return _terminal


def say(line: str) -> None:
    """Print one line of our own (no markup is interpreted)."""
    _console().print(line, markup=False)


def show(table: Table) -> None:
    """Print a rich table."""
    _console().print(table)


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send everything but our own lines to ``log`` (appended) until the block ends; an empty log is removed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab", buffering=0) as sink:
        try:
            with _redirected(sink.fileno()):
                yield
        finally:
            if os.fstat(sink.fileno()).st_size == 0:
                log.unlink(missing_ok=True)


@contextlib.contextmanager
def _redirected(sink: int) -> Iterator[None]:
    """Point descriptors 1 and 2 at ``sink``, and our own console at the terminal that they were."""
    global _terminal
    from rich.console import Console

    before = _terminal
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with os.fdopen(os.dup(saved[0]), "w", encoding="utf-8") as terminal:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        _terminal = Console(file=terminal, highlight=False, soft_wrap=True)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)
            _terminal = before


class Progress:
    """A count of finished units: a rich bar on a terminal, a plain line every few seconds elsewhere."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit),
                   TimeRemainingColumn(), TextColumn("{task.fields[note]}"))  # fmt: skip
        console = _console()
        self._bar = RichProgress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(label, total=total, note="")
        self._label, self._total, self._unit = label, total, unit
        self._started = self._printed = time.monotonic()
        self._first: tuple[float, int] | None = None

    def update(self, done: int, note: str = "") -> None:
        """Show that ``done`` of the total are finished; ``note`` is shown behind it."""
        self._bar.update(self._task, completed=done, note=note)
        now = time.monotonic()
        self._first = (now, done) if self._first is None and done else self._first
        if not self._bar.disable or now - self._printed < PLAIN_INTERVAL_S:
            return
        self._printed = now
        say(f"  {self._label}: {done}/{self._total} {self._unit}{self._eta(now, done)}{', ' + note if note else ''}")

    def _eta(self, now: float, done: int) -> str:
        if self._first is None or done <= self._first[1]:
            return f", {now - self._started:.0f} s so far"
        rate = (done - self._first[1]) / (now - self._first[0])
        return f", {rate:.1f} {self._unit}/s, {(self._total - done) / rate:.0f} s left"

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()


@contextlib.contextmanager
def polling(look: Callable[[], None], every_s: float = POLL_S) -> Iterator[None]:
    """Call ``look`` every so many seconds in a thread while the block runs, and once more at its end."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(every_s):
            look()

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
