"""Ids in a driver: packed or not, the same ids at the same places."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from trimtab.engine.ids import Ids

HEX = st.text("0123456789abcdef", min_size=20, max_size=20) | st.sampled_from(["0" * 20, "ab" + "0" * 18, "f" * 20])
OTHER = st.text("0aAfgö-", min_size=1, max_size=24)
ALIKE = st.lists(st.lists(HEX), max_size=5)
MIXED = st.lists(st.lists(HEX) | st.lists(OTHER) | st.lists(HEX | OTHER), max_size=5)


def _bytes(ids: list[str]) -> np.ndarray:
    return np.array([row_id.encode() for row_id in ids], dtype=bytes)


@given(ALIKE | MIXED, st.lists(HEX | OTHER))
def test_ids_are_found_whatever_came_first(parts: list[list[str]], asked: list[str]) -> None:
    given_ids = [row_id for part in parts for row_id in part]
    ids = Ids(map(_bytes, parts))
    names = sorted(set(given_ids), key=str.encode)
    assert ids.names() == names
    assert len(ids) == len(names)
    found = ids.find(pa.chunked_array([[*asked, *given_ids]], type=pa.string()))
    assert [names[place] for place in found] == [row_id for row_id in (*asked, *given_ids) if row_id in set(names)]


def test_an_id_of_the_projects_own_takes_ten_bytes() -> None:
    ids = Ids([_bytes(["0123456789abcdef0000", "00000000000000000000"])])
    assert ids._values.itemsize == 10
    assert ids.names(np.array([True, False])) == ["0" * 20]
    assert Ids([_bytes(["0123456789ABCDEF0000"])])._values.itemsize == 20
    assert len(Ids([])) == 0
