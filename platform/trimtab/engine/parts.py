"""The committed files of a run: what is in them, and which of them can't be read any more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trimtab.schemas import readable


class Parts:
    """Counts over the Parquet files of a folder that is still being written; a file is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_rows = self.num_tokens = self.num_errors = 0
        self._ids: dict[Path, list[str]] = {}

    def look(self) -> None:
        """Read the files that came since the last look; one that is still being written is left for the next."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        for path in _files(self.folder):
            if path in self._ids:
                continue
            with contextlib.suppress(pa.ArrowInvalid, FileNotFoundError):
                table = pq.ParquetFile(path).read(columns=["id", "num_tokens", "error"])
                self._ids[path] = table["id"].to_pylist()
                self.num_rows += table.num_rows
                self.num_tokens += pc.sum(table["num_tokens"]).as_py() or 0
                self.num_errors += pc.sum(pc.not_equal(table["error"], "")).as_py() or 0

    def all_ids(self) -> Iterator[str]:
        """The id of every committed row."""
        for ids in self._ids.values():
            yield from ids

    def ids(self) -> set[str]:
        """The ids that are committed now."""
        self.look()
        return set(self.all_ids())


def remove_unreadable(folder: Path) -> list[str]:
    """Remove generation files that are no readable Parquet, and the checkpoints that say their rows are done.

    Returns:
        The names of the removed files.
    """
    removed = []
    for path in _files(folder / "generations"):
        if not readable(path):
            _forget(path, folder / "checkpoint")
            removed.append(path.name)
    return removed


def _forget(path: Path, checkpoints: Path) -> None:
    """Ray Data names a checkpoint as the data files that it stands for begin: first it goes, then the file."""
    for checkpoint in _files(checkpoints):
        if path.name.startswith(checkpoint.name.removesuffix(".parquet").removesuffix(".pending")):
            checkpoint.unlink()
    path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) if folder.is_dir() else []
