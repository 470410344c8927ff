"""Header tricks against the gate behind a real HTTP server, and how long the gate holds a request."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench._attacks import Range, raw_attacks, run_raw
from tests.bench._gate_latency import added_latency_ms
from tests.policy.judging import GRAMMARS
from trimtab.chat import Chat
from trimtab.policy.settings import GateSettings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["strict", "escape"])
def test_no_bytes_on_a_connection_get_through(chat: Chat, tmp_path: Path, mode: str) -> None:
    limits = GateSettings(control_tokens=mode, body_timeout_s=0.4)  # type: ignore[arg-type]
    outcome = run_raw(Range(chat, GRAMMARS["chatml"], limits, tmp_path))
    assert outcome.attempts == len(raw_attacks())
    assert (outcome.breaches, outcome.unhandled) == ([], [])
    assert outcome.reached >= 4  # the plain ones


def test_gate_is_quick() -> None:
    """Far above the benchmark's bound, which is measured on a machine that does nothing else."""
    assert added_latency_ms()["median"] < 20
