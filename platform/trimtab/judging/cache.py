"""A judge's answers by their content: the same question to the same judge costs no second call.

One SQLite file, which several processes may use at once. It keeps what a judge wrote, whether it can be parsed or not,
and never an error.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from trimtab.artifacts import DISK_FULL, FULL
from trimtab.config import InputError

NAME = "answers.sqlite"
WAIT_S = 60.0
"""So long a write waits for another process's."""
PRIMARY_CODE = 0xFF
"""The part of SQLite's error codes that names the kind."""


class AnswerCache:
    """Answers by id (``ModelJudge.answer_ids``), kept as they come. A context manager, for one thread.

    Raises:
        InputError: the file is there and no cache, can't be opened, or there is no space left for it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        with _errors_in_one_line(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = _opened(self._path)

    def find(self, ids: Iterable[str]) -> dict[str, str]:
        """The answers that are there."""
        with _errors_in_one_line(self._path):
            rows = [self._connection.execute("SELECT id, raw FROM answers WHERE id = ?", (i,)).fetchone() for i in ids]
        return {row[0]: row[1] for row in rows if row is not None}

    def put(self, answer_id: str, raw: str) -> None:
        """Keep an answer; of two that come for one id the first stays."""
        with _errors_in_one_line(self._path):
            self._connection.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (answer_id, raw))

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.close()


@contextlib.contextmanager
def _errors_in_one_line(path: Path) -> Iterator[None]:
    """SQLite's errors are no OSErrors: a full disk is known by its code, and has the remedy of every full disk.

    An OSError would pass for one of the output, which lies elsewhere.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE == sqlite3.SQLITE_FULL:
            raise InputError("judge.cache", path, *DISK_FULL) from error
        raise InputError("judge.cache", path, f"can't be used ({error})", "remove or replace it") from error
    except OSError as error:
        if error.errno in FULL:
            raise InputError("judge.cache", path, *DISK_FULL) from error
        raise InputError("judge.cache", path, f"can't be used ({error.strerror})", "choose another folder") from error


def _opened(path: Path) -> sqlite3.Connection:
    """A connection that commits each statement; a lock keeps two processes from setting the file up at once."""
    from filelock import FileLock

    connection = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None)
    try:
        with FileLock(path.with_suffix(".lock")):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS answers (id TEXT PRIMARY KEY, raw TEXT) WITHOUT ROWID")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
