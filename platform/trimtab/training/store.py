"""Tokenized groups in one memory-mapped Arrow file, read by id: a worker's memory doesn't grow with the data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from trimtab.files import whole_file

_ids = pa.list_(pa.int32())
SCHEMA = pa.schema([("id", pa.string()), ("prompt", _ids), ("responses", pa.list_(_ids)), ("learn_from", _ids),
                    ("num_demonstrations", pa.int32())])  # fmt: skip
BATCH = 256


@dataclass(frozen=True)
class TokenizedGroup:
    """A group's ids. ``learn_from[i]`` is the place in response i behind its given, harmful start."""

    id: str
    prompt: list[int]
    responses: list[list[int]]
    learn_from: list[int]
    num_demonstrations: int


def write_groups(path: Path, groups: Iterable[TokenizedGroup]) -> None:
    """Write groups as they come, a batch at a time; the file appears whole or not at all."""
    with whole_file(path) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        batch: list[TokenizedGroup] = []
        for group in groups:
            batch.append(group)
            if len(batch) == BATCH:
                writer.write_batch(_to_arrow(batch))
                batch = []
        if batch:
            writer.write_batch(_to_arrow(batch))


def _to_arrow(groups: list[TokenizedGroup]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([asdict(group) for group in groups], schema=SCHEMA)


class GroupStore:
    """The groups of a file by id."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._row = {group_id: row for row, group_id in enumerate(self._table.column("id").to_pylist())}

    def __getitem__(self, group_id: str) -> TokenizedGroup:
        """The group of an id; KeyError where there is none."""
        return TokenizedGroup(**self._table.slice(self._row[group_id], 1).to_pylist()[0])

    def __len__(self) -> int:
        return len(self._row)

    @property
    def ids(self) -> list[str]:
        """All ids, in file order."""
        return list(self._row)
