"""Corr@k of 60 real requests at eight k: cases a second against the released script's way and against bare vLLM."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
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
DECODING: dict[str, dict[str, float]] = {"greedy": GREEDY, "paper_sampling": {}}
NUM_ROUNDS = 3
SIDES = {
    "ours, greedy": ("ours", "greedy"),
    "hf, greedy": ("hf", "greedy"),
    "vllm, greedy": ("vllm", "greedy"),
    "ours, paper sampling": ("ours", "paper_sampling"),
    "hf, paper sampling": ("hf", "paper_sampling"),
}
RATIOS = {
    "cases_per_s_vs_hf_greedy": ("ours, greedy", "hf, greedy"),
    "cases_per_s_vs_hf_paper_sampling": ("ours, paper sampling", "hf, paper sampling"),
    "cases_per_s_vs_bare_vllm": ("ours, greedy", "vllm, greedy"),
}


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
    """Ratios of the medians over interleaved rounds on the same cores, with the least and the greatest of a round."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        model = str(models.fetch(MODEL))
        for number in range(NUM_ROUNDS):
            folder = Path(scratch) / str(number)
            for name, (peer, decoding) in SIDES.items():
                rounds[name].append(_measured(folder, peer, decoding, model))
                say(f"  round {number}, {name}: {rounds[name][-1]}")
    rates = {name: [found["cases_per_s"] for found in all_found] for name, all_found in rounds.items()}
    cached = [found["cached_share"] for found in rounds["ours, greedy"] if found["cached_share"] is not None]
    figures: dict[str, Any] = {"cached_share": median(cached)}
    for figure, (ours, peer) in RATIOS.items():
        figures[figure] = median(rates[ours]) / median(rates[peer])
        each = [mine / theirs for mine, theirs in zip(rates[ours], rates[peer], strict=True)]
        figures[f"{figure}_range"] = [min(each), max(each)]
    settings = {"model": MODEL, "requests": NUM_REQUESTS, "rounds": rounds, "engine": ENGINE.model_dump(mode="json"),
                "hf_batch": 10, "peers_order": "k by k, as the released script",
                "clock": "from the first row in the engine to the last one out; loading left out"}  # fmt: skip
    return figures, settings


def _measured(folder: Path, peer: str, decoding: str, model: str) -> dict[str, Any]:
    """One side once; the peers take the plan that ours has made in this round."""
    if peer == "ours":
        return evaluated(folder / decoding, DECODING[decoding], model)
    given = {"plan": str(folder / decoding / "plan"), "model": model, "side": peer,
             "engine": ENGINE.model_dump(mode="json")}  # fmt: skip
    return side("tests.bench._evaluation_side", given, folder / "side.log")
