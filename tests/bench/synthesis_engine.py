"""What the engine gives under ``trimtab synthesize``, against bare vLLM and transformers' generate on the same plan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.bench._engine_side import HF_ROWS
from tests.bench._training import MODEL, side, source
from trimtab import cluster, models
from trimtab.console import quiet, say
from trimtab.engine import VLLMEngine
from trimtab.synthesis import run as synthesis
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe

NUM_REQUESTS = 155  # all of the published subset's for training
ENGINE = VLLMEngine()
ANY_TEXT = QualityConfig(min_words=0, max_repeated_share=None)


def synthesized(output: Path, engine: VLLMEngine, num_requests: int) -> tuple[float, dict[str, int]]:
    """(generated tokens a second while the engine held rows, counts) of the stage, on a Ray of its own."""
    recipe = CourseCorrectionRecipe(source=source(), num_requests=num_requests, near_duplicates=None, min_words=40)
    config = SynthesisConfig(output=output, recipe=recipe, engine=engine, quality=ANY_TEXT)
    record = synthesis.run(config)
    cluster.disconnect()
    return record.results["tokens_per_s"], record.counts


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokens a second of each, one after the other on the same cores, and the ratios."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        folder = Path(scratch)
        ours, counts = synthesized(folder / "groups", ENGINE, NUM_REQUESTS)
        say(f"  trimtab synthesize: {ours:.0f} tokens/s, {counts}")
        given = {"plan": str(folder / "groups" / "plan"), "model": str(models.fetch(MODEL)),
                 "engine": ENGINE.model_dump(mode="json")}  # fmt: skip
        peers = {}
        for name in ("vllm", "vllm_with_our_arguments", "hf"):
            peers[name] = side("tests.bench._engine_side", given | {"side": name}, folder / "side.log")
            say(f"  {name}: {peers[name]}")
    figures = {
        "tokens_per_s_vs_bare_vllm": ours / peers["vllm"]["tokens_per_s"],
        "tokens_per_s_vs_bare_vllm_with_our_arguments": ours / peers["vllm_with_our_arguments"]["tokens_per_s"],
        "tokens_per_s_vs_hf_generate": ours / peers["hf"]["tokens_per_s"],
        "tokens_per_s": ours,
    }
    settings = {"model": MODEL, "requests": NUM_REQUESTS, "counts": counts, "peers": peers, "max_tokens": 128,
                "engine": ENGINE.model_dump(mode="json"), "hf_batch": 40, "hf_rows": HF_ROWS,
                "decoding": "greedy", "bare_vllm": "its own defaults, with our binding, cache space, eager mode, dtype",
                "clock": "from the first row in the engine to the last one out; loading left out"}  # fmt: skip
    return figures, settings
