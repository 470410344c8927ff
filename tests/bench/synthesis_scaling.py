"""Two engine actors of one core each against one of one core; and what 1, 8 and 64 GPUs would take, by arithmetic."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.bench._training import MODEL, side
from tests.bench.synthesis_engine import NUM_REQUESTS, synthesized
from trimtab import models
from trimtab.console import quiet, say
from trimtab.engine import VLLMEngine

# An actor holds twice ``max_num_seqs`` rows: so few that the engine that is up first can't take the whole plan.
ONE = VLLMEngine(cores_per_actor=1, kv_cache_gib=1, max_num_seqs=64, rows_per_batch=16)
TWO = ONE.model_copy(update={"num_actors": 2})
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
        folder = Path(scratch)
        for name, engine in (("one", ONE), ("two", TWO)):
            rates[name], counts = synthesized(folder / name, engine, NUM_REQUESTS)
            say(f"  {name}: {rates[name]:.0f} tokens/s")
        for name, copies in (("one_bare", 1), ("two_bare", 2)):
            rates[name] = _bare(folder, copies)
            say(f"  {name}: {rates[name]:.0f} tokens/s")
    figures = {"efficiency_2_actors": rates["two"] / (2 * rates["one"]),
               "efficiency_2_bare_engines": rates["two_bare"] / (2 * rates["one_bare"]),
               "tokens_per_s": rates}  # fmt: skip
    settings = {"model": MODEL, "requests": NUM_REQUESTS, "counts": counts, "one_core_each": True, "assumed": ASSUMED,
                "engine": ONE.model_dump(mode="json"),
                "clock": "from the first row in an engine to the last one out of the last engine; loading left out",
                "bare_engines": "vllm.LLM with the same arguments, without Ray: what the machine itself allows",
                "hours_by_gpus": {gpus: _hours(gpus) for gpus in (1, 8, 64)},
                "note": "the hours are arithmetic on the assumptions; actors share nothing"}  # fmt: skip
    return figures, settings


def _hours(gpus: int) -> float:
    tokens = ASSUMED["generations"] * ASSUMED["new_tokens"]
    return (tokens / (ASSUMED["tokens_per_s_of_one_gpu"] * gpus) + ASSUMED["start_s"]) / 3600


def _bare(folder: Path, copies: int) -> float:
    """Tokens a second of so many processes of ``vllm.LLM`` side by side, each with every other row of the plan."""
    given = {"plan": str(folder / "one" / "plan"), "model": str(models.fetch(MODEL)), "rows": 2,
             "engine": TWO.model_dump(mode="json"), "side": "vllm_with_our_arguments"}  # fmt: skip
    with ThreadPoolExecutor(copies) as pool:
        made = pool.map(lambda part: side("tests.bench._engine_side", given | {"part": part}, folder / "side.log"),
                        range(copies))  # fmt: skip
        return sum(one["tokens_per_s"] for one in made)
