"""Two engine actors of one core each against one of one core; and what 1, 8 and 64 GPUs would take, by arithmetic."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.bench._training import MODEL
from tests.bench.synthesis_engine import NUM_REQUESTS, synthesized
from trimtab.console import quiet, say
from trimtab.engine import VLLMEngine

ONE = VLLMEngine(cores_per_actor=1, kv_cache_gib=1)
TWO = VLLMEngine(cores_per_actor=1, kv_cache_gib=1, num_actors=2)
ASSUMED = {
    "generations": 250_000,
    "new_tokens": 128,
    "tokens_per_s_of_one_gpu": 4_000,  # a 7B model in bfloat16 on one 80 GB GPU, batched: assumed, not measured
    "start_s": 120,
}


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Scaling efficiency, and the table."""
    rates = {}
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        for name, engine in (("one", ONE), ("two", TWO)):
            rates[name], counts = synthesized(Path(scratch) / name, engine, NUM_REQUESTS)
            say(f"  {name}: {rates[name]:.0f} tokens/s")
    efficiency = rates["two"] / (2 * rates["one"])
    figures = {"efficiency_2_actors": efficiency, "tokens_per_s": rates}
    settings = {"model": MODEL, "requests": NUM_REQUESTS, "counts": counts, "one_core_each": True, "assumed": ASSUMED,
                "hours_by_gpus": {gpus: _hours(gpus) for gpus in (1, 8, 64)},
                "note": "the hours are arithmetic on the assumptions; actors share nothing"}  # fmt: skip
    return figures, settings


def _hours(gpus: int) -> float:
    tokens = ASSUMED["generations"] * ASSUMED["new_tokens"]
    return (tokens / (ASSUMED["tokens_per_s_of_one_gpu"] * gpus) + ASSUMED["start_s"]) / 3600
