"""A log that is sent again from its beginning after each lost connection is shown once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trimtab.operations.cluster_jobs import _Log


@given(st.text(), st.lists(st.integers(0, 40), max_size=5), st.integers(1, 9))
def test_log_is_shown_once_wherever_the_connection_breaks(text: str, breaks: list[int], size: int) -> None:
    shown: list[str] = []
    log = _Log(shown.append)
    for end in [*breaks, len(text)]:
        log.rewind()
        part = text[:end]
        for start in range(0, len(part), size):
            log.take(part[start : start + size])
    assert "".join(shown) == text
