"""The committed files of a run: what is in them, which can't be read any more, and what the checkpoints say of them.

Ray Data names a checkpoint (``X.parquet``) as the data file that it stands for begins (``X-0.parquet``). It commits one
by renaming ``X.pending.parquet``, which in an object store is a copy and a removal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trimtab.files import AnyPath, at_once, files_in, parquet_source
from trimtab.schemas import readable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Ids = npt.NDArray[np.bytes_]

PENDING = ".pending.parquet"


def ids_in(folder: AnyPath) -> Ids:
    """The ids in a folder's Parquet files, each once and sorted, as bytes: 20 a row where strings in a set take 150.

    They grow in place and are sorted there: a second copy of all ids would be most of what a driver takes.
    """
    import numpy as np

    ids = np.array([], dtype=bytes)
    for found in at_once(_ids_of, files_in(folder)):
        if found.itemsize > ids.itemsize:
            ids = ids.astype(found.dtype)
        start = len(ids)
        ids.resize(start + len(found), refcheck=False)
        ids[start:] = found
    ids.sort()
    return np.unique(ids) if (ids[1:] == ids[:-1]).any() else ids


def _ids_of(path: AnyPath) -> Ids:
    import pyarrow.parquet as pq

    return _as_bytes(pq.ParquetFile(parquet_source(path)).read(columns=["id"])["id"])


def _as_bytes(column: Any) -> Ids:
    import numpy as np
    import pyarrow as pa

    return np.array(column.cast(pa.binary()).to_pylist(), dtype=bytes)


class Parts:
    """How often each id of a plan is in the Parquet files of a folder that is still being written.

    A file is read once, and of its ids only the counts are kept: a driver's memory must not grow with the rows.
    """

    def __init__(self, folder: AnyPath, ids: Ids) -> None:
        """``ids``: the plan's, each once and sorted."""
        import numpy as np

        self.folder, self._ids = folder, ids
        self.num_rows = self.num_tokens = self.num_errors = 0
        self._times = np.zeros(len(ids), dtype=np.int32)
        self._seen: set[str] = set()

    def look(self) -> None:
        """Read the files that came since the last look; one that is still being written is left for the next."""
        import pyarrow.compute as pc

        new = [path for path in files_in(self.folder) if path.name not in self._seen]
        for path, table in zip(new, at_once(_counted_columns, new), strict=True):
            if table is None:
                continue
            self._seen.add(path.name)
            self._count(_as_bytes(table["id"]))
            self.num_rows += table.num_rows
            self.num_tokens += pc.sum(table["num_tokens"]).as_py() or 0
            self.num_errors += pc.sum(pc.not_equal(table["error"], "")).as_py() or 0

    def _count(self, ids: Ids) -> None:
        """Ids outside the plan (of an earlier, longer one) don't matter."""
        import numpy as np

        places = np.searchsorted(self._ids, ids)
        there = places < len(self._ids)
        there[there] = self._ids[places[there]] == ids[there]
        np.add.at(self._times, places[there], 1)

    @property
    def num_there(self) -> int:
        """How many ids of the plan are committed."""
        return int((self._times > 0).sum())

    @property
    def missing(self) -> list[str]:
        """The ids of the plan that are not there."""
        return [row_id.decode() for row_id in self._ids[self._times == 0].tolist()]

    @property
    def doubled(self) -> list[str]:
        """The ids of the plan that are there more than once."""
        return [row_id.decode() for row_id in self._ids[self._times > 1].tolist()]


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
