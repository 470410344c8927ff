"""Corr@k of 60 real requests at eight k: cases a second against the released script's way and against bare vLLM."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.bench._training import MODEL, side, source
from trimtab import cluster, models
from trimtab.console import polling, quiet, say
from trimtab.engine import VLLMEngine
from trimtab.engine.telemetry import cached_share
from trimtab.evaluation import prefill
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.schemas import Generation, read_rows

NUM_REQUESTS = 60
LOOK_EVERY_S = 5.0
ENGINE = VLLMEngine()
GREEDY = {"temperature": 0.0, "top_p": 1.0}
DECODING = {"greedy": GREEDY, "paper_sampling": {}}


def evaluated(output: Path, decoding: dict[str, float], model: str) -> dict[str, Any]:
    """Cases a second from the first row in the engine to the last one out, and the share of cached prompt tokens."""
    asked = source().model_copy(update={"num_evaluation_prompts": NUM_REQUESTS})
    config = PrefillConfig.model_validate({"output": output, "source": asked, "engine": ENGINE, **decoding})
    shares: list[float] = []

    def look() -> None:
        share = cached_share(model)
        shares.extend([share] if share is not None else [])

    cluster.connect(config.ray)
    with polling(look, LOOK_EVERY_S):
        record = prefill.run(config)
    cluster.disconnect()
    rows = read_rows(output / "generations", Generation)
    seconds = max(row.finished_at for row in rows) - min(row.finished_at - row.seconds for row in rows)
    return {
        "cases": len(rows), "prompts": record.counts["prompts"], "seconds": seconds, "cases_per_s": len(rows) / seconds,
        "tokens": sum(row.num_tokens for row in rows), "cached_share": shares[-1] if shares else None,
    }  # fmt: skip


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Cases a second of each side, one after the other on the same cores, and the ratios."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        folder, model = Path(scratch), str(models.fetch(MODEL))
        ours, peers = {}, {}
        for name, decoding in DECODING.items():
            ours[name] = evaluated(folder / name, decoding, model)
            say(f"  trimtab evaluate prefill, {name}: {ours[name]}")
        for peer, name in (("hf", "greedy"), ("hf", "paper_sampling"), ("vllm", "greedy")):
            given = {"plan": str(folder / name / "plan"), "model": model, "side": peer,
                     "engine": ENGINE.model_dump(mode="json")}  # fmt: skip
            peers[peer, name] = side("tests.bench._evaluation_side", given, folder / "side.log")
            say(f"  {peer}, {name}: {peers[peer, name]}")

    def ratio(peer: str, name: str) -> float:
        return float(ours[name]["cases_per_s"] / peers[peer, name]["cases_per_s"])

    figures = {
        "cases_per_s_vs_hf_greedy": ratio("hf", "greedy"),
        "cases_per_s_vs_hf_paper_sampling": ratio("hf", "paper_sampling"),
        "cases_per_s_vs_bare_vllm": ratio("vllm", "greedy"),
        "cached_share": ours["greedy"]["cached_share"],
        "cases_per_s": {name: found["cases_per_s"] for name, found in ours.items()},
    }
    settings = {"model": MODEL, "requests": NUM_REQUESTS, "ours": ours, "engine": ENGINE.model_dump(mode="json"),
                "peers": {" ".join(key): found for key, found in peers.items()}, "hf_batch": 10,
                "peers_order": "k by k, as the released script",
                "clock": "from the first row in the engine to the last one out; loading left out"}  # fmt: skip
    return figures, settings
