"""The committed files of a run: what is in them, which can't be read any more, and what the checkpoints say of them.

Ray Data names a checkpoint (``X.parquet``) as the data file that it stands for begins (``X-0.parquet``). It commits one
by renaming ``X.pending.parquet``, which in an object store is a copy and a removal.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trimtab.engine.ids import Ids
from trimtab.files import AnyPath, at_once, files_in, parquet_source
from trimtab.schemas import readable

PENDING = ".pending.parquet"


class Parts:
    """How often each id of a plan is in the Parquet files of a folder that is still being written.

    A file is read once, and of its ids only the counts are kept: a driver's memory must not grow with the rows.
    """

    def __init__(self, folder: AnyPath, ids: Ids) -> None:
        """``ids``: the plan's."""
        self.folder, self._ids = folder, ids
        self.num_rows = self.num_tokens = self.num_errors = 0
        self._times = np.zeros(len(ids), dtype=np.int16)
        self._seen: set[str] = set()

    def look(self) -> None:
        """Read the files that came since the last look; one that is still being written is left for the next."""
        import pyarrow.compute as pc

        new = [path for path in files_in(self.folder) if path.name not in self._seen]
        for path, table in zip(new, at_once(_counted_columns, new), strict=True):
            if table is None:
                continue
            self._seen.add(path.name)
            np.add.at(self._times, self._ids.find(table["id"]), 1)  # ids of an earlier, longer plan don't matter
            self.num_rows += table.num_rows
            self.num_tokens += pc.sum(table["num_tokens"]).as_py() or 0
            self.num_errors += pc.sum(pc.not_equal(table["error"], "")).as_py() or 0

    @property
    def num_there(self) -> int:
        """How many ids of the plan are committed."""
        return int((self._times > 0).sum())

    @property
    def missing(self) -> list[str]:
        """The ids of the plan that are not there."""
        return self._ids.names(self._times == 0)

    @property
    def doubled(self) -> list[str]:
        """The ids of the plan that are there more than once."""
        return self._ids.names(self._times > 1)


def _counted_columns(path: AnyPath) -> Any:
    """What is counted of a file; None of one that is not whole yet, or gone again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(parquet_source(path)).read(columns=["id", "num_tokens", "error"])
    except (pa.ArrowInvalid, FileNotFoundError):
        return None


def remove_unreadable(folder: AnyPath) -> list[str]:
    """Remove generation files that are no readable Parquet, and the checkpoints that say their rows are done.

    Returns:
        The names of the removed files.
    """
    files = files_in(folder / "generations")
    bad = [path for path, good in zip(files, at_once(readable, files), strict=True) if not good]
    gone = {_task_of_file(path) for path in bad}
    for checkpoint in files_in(folder / "checkpoint"):
        if _task_of_checkpoint(checkpoint) in gone:
            checkpoint.unlink()  # before the file: a checkpoint without its file would pass for done
    for path in bad:
        path.unlink()
    return [path.name for path in bad]


def mend_checkpoints(folder: AnyPath) -> int:
    """Let checkpoints say what the files say: remove those whose file is gone, and pending ones that were committed.

    A kill between the copy and the removal of a commit leaves both names; Ray Data would then take the file away as
    never committed, and keep the checkpoint that says it is.

    Returns:
        How many files are gone.
    """
    made = {_task_of_file(path) for path in files_in(folder / "generations")}
    checkpoints = files_in(folder / "checkpoint")
    pending = [path for path in checkpoints if path.name.endswith(PENDING)]
    committed = {_task_of_checkpoint(path): path for path in checkpoints if path not in pending}
    lost = [path for task, path in committed.items() if task not in made]
    for path in [*(path for path in pending if _task_of_checkpoint(path) in committed), *lost]:
        path.unlink()
    return len(lost)


def _task_of_file(path: AnyPath) -> str:
    return path.name.rpartition("-")[0]


def _task_of_checkpoint(path: AnyPath) -> str:
    return path.name.removesuffix(".parquet").removesuffix(".pending")
