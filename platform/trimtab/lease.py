"""Who writes an output in an object store, which knows no locks: a small object that its holder keeps renewing.

The object is created only where there is none (a conditional write). One that has not been renewed for ``EXPIRES_S``,
by the store's own clock, belongs to a writer that is gone and is taken over; a fresh one is refused with the name of
its holder and the seconds to wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from trimtab.config import InputError
from trimtab.console import say

if TYPE_CHECKING:
    from upath import UPath

EXPIRES_S, RENEW_S = 60.0, 15.0
SETTLE_S = 2.0
"""Two who take over the same lease both write it; after this time both read it, and one finds the other's name."""


@contextlib.contextmanager
def leased(field: str, path: UPath) -> Iterator[Callable[[], None]]:
    """Hold the lease that stands at ``path`` until the block ends; gives a check that it is still held.

    Raises:
        InputError: another writer holds it, or, by the check, took it over.
    """
    lease = _Lease(field, path)
    lease.take()
    stop = threading.Event()
    thread = threading.Thread(target=lease.keep_renewing, args=(stop,), daemon=True)
    thread.start()
    try:
        yield lease.require
    finally:
        stop.set()
        thread.join()
        lease.release()


class _Lease:
    def __init__(self, field: str, path: UPath) -> None:
        self._field, self._path, self._fs = field, path, path.fs
        self._token = uuid.uuid4().hex
        self._holder = f"process {os.getpid()} on {socket.gethostname()}"

    def take(self) -> None:
        """Create the lease, or take over one that has expired."""
        held = self._read() or self._created()
        if held is None:
            return
        left_s = EXPIRES_S - self._age_s()
        if left_s > 0:
            problem = f"is being written by {held['holder']}, whose lease ends in {left_s:.0f} s unless that goes on"
            raise self._refused(problem, f"wait {left_s:.0f} s, or choose another folder")
        say(f"  {held['holder']} wrote {self._path.parent} and is gone; going on in its place")
        self._write()
        time.sleep(SETTLE_S)
        self.require()

    def _created(self) -> dict[str, Any] | None:
        """Create the lease; where another writer was faster, what that one wrote."""
        try:
            self._write("create")
        except Exception:  # each client says in its own way that the object is there by now
            if (held := self._read()) is None:
                raise
            return held
        return None

    def keep_renewing(self, stop: threading.Event) -> None:
        """Write the lease anew every ``RENEW_S`` as long as it is ours; what fails is tried again the next time."""
        while not stop.wait(RENEW_S):
            try:
                if not self._is_ours():
                    return
                self._write()
            except Exception as error:  # each store's client has its own; the check before the record decides
                print(f"lease {self._path}: not renewed ({type(error).__name__}: {error})", flush=True)

    def require(self) -> None:
        """Refuse to go on where the lease is another's."""
        if not self._is_ours():
            problem = "another process took it over, since this one had not renewed its lease"
            raise self._refused(problem, "wait until that one is done; the same command then goes on")

    def release(self) -> None:
        """Remove the lease, unless it is another's."""
        if self._is_ours():
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path.path)

    def _is_ours(self) -> bool:
        held = self._read()
        return held is not None and held["token"] == self._token

    def _read(self) -> dict[str, Any] | None:
        try:
            return dict(json.loads(self._fs.cat_file(self._path.path)))
        except FileNotFoundError:
            return None

    def _write(self, mode: str = "overwrite") -> None:
        text = json.dumps({"token": self._token, "holder": self._holder})
        self._fs.pipe_file(self._path.path, text.encode(), mode=mode)

    def _age_s(self) -> float:
        """Seconds since the lease was written, by the store's clock: this machine's may be wrong."""
        now = f"{self._path.path}-{self._token}"
        self._fs.pipe_file(now, b"")
        try:
            return float((self._fs.modified(now) - self._fs.modified(self._path.path)).total_seconds())
        except FileNotFoundError:  # given back meanwhile
            return EXPIRES_S
        finally:
            self._fs.rm_file(now)

    def _refused(self, problem: str, remedy: str) -> InputError:
        return InputError(self._field, self._path.parent, problem, remedy)
