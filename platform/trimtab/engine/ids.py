"""The ids of a plan in a driver's memory: sorted, each once, 10 bytes a row where strings in a set would take 150.

``make_id`` gives 20 hexadecimal digits, which are 10 bytes; other ids stand as they are, padded to the longest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from trimtab.files import AnyPath, at_once, files_in, parquet_source

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.bytes_]

DIGITS = 20
VALUES = np.full(256, 16, dtype=np.uint8)
"""What each byte is worth as a hexadecimal digit; 16: it is none."""
VALUES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16, dtype=np.uint8)


class Ids:
    """Ids to be found by their place in sorted order; that of packed ids is the same."""

    def __init__(self, parts: Iterable[Bytes]) -> None:
        """They grow in place and are sorted there: a second copy of all ids would be most of what a driver takes."""
        self._values: Bytes = np.array([], dtype=f"S{DIGITS // 2}")
        self._packed = True
        for ids in parts:
            self._add(ids)
        self._values.sort()
        if (self._values[1:] == self._values[:-1]).any():
            self._values = np.unique(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def find(self, column: Any) -> npt.NDArray[np.intp]:
        """The places of an Arrow column's ids, without those that are not here."""
        ids = _as_bytes(column)
        if self._packed:
            ids = _packed(ids)
        places = np.searchsorted(self._values, ids)
        there = places < len(self._values)
        there[there] = self._values[places[there]] == ids[there]
        return places[there]

    def names(self, where: npt.NDArray[np.bool_] | slice = slice(None)) -> list[str]:
        """The ids at some places, in order."""
        chosen = self._values[where]
        return [row_id.decode() for row_id in (_unpacked(chosen) if self._packed else chosen).tolist()]

    def _add(self, ids: Bytes) -> None:
        if self._packed:
            packed = _packed(ids)
            if len(packed) == len(ids):
                ids = packed
            else:
                self._values, self._packed = _unpacked(self._values), False
        if ids.itemsize > self._values.itemsize:
            self._values = self._values.astype(ids.dtype)
        start = len(self._values)
        self._values.resize(start + len(ids), refcheck=False)
        self._values[start:] = ids


def ids_in(folder: AnyPath) -> Ids:
    """The ids in a folder's Parquet files."""
    return Ids(at_once(_ids_of, files_in(folder)))


def _ids_of(path: AnyPath) -> Bytes:
    import pyarrow.parquet as pq

    return _as_bytes(pq.ParquetFile(parquet_source(path)).read(columns=["id"])["id"])


def _as_bytes(column: Any) -> Bytes:
    import pyarrow as pa

    return np.array(column.cast(pa.binary()).to_pylist(), dtype=bytes)


def _packed(ids: Bytes) -> Bytes:
    """Those ids that are hexadecimal digits, two to a byte."""
    of_length = ids[np.strings.str_len(ids) == DIGITS].astype(f"S{DIGITS}")
    values = VALUES[of_length.view(np.uint8).reshape(-1, DIGITS)]
    values = values[(values < 16).all(axis=1)]
    pairs = np.ascontiguousarray(values[:, ::2] << 4 | values[:, 1::2])
    return pairs.view(f"S{DIGITS // 2}").ravel()


def _unpacked(values: Bytes) -> Bytes:
    # NumPy takes zeros off the end of bytes.
    digits = [value.ljust(DIGITS // 2, b"\0").hex().encode() for value in values.tolist()]
    return np.array(digits, dtype=f"S{DIGITS}")
