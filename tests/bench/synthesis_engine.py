"""What the engine gives under ``trimtab synthesize``, against bare vLLM and transformers' generate on the same plan."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as pads

from tests.bench._engine_side import HF_ROWS, middle_rate
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
BARE = {"bare_vllm": "vllm", "bare_vllm_with_our_arguments": "vllm_with_our_arguments"}
ANY_TEXT = QualityConfig(min_words=0, max_repeated_share=None)


def synthesized(output: Path, engine: VLLMEngine, num_requests: int) -> tuple[dict[str, float], dict[str, int]]:
    """(generated tokens a second in the middle and while the engine held rows, counts), on a Ray of its own."""
    recipe = CourseCorrectionRecipe(source=source(), num_requests=num_requests, near_duplicates=None, min_words=40)
    config = SynthesisConfig(output=output, recipe=recipe, engine=engine, quality=ANY_TEXT)
    record = synthesis.run(config)
    cluster.disconnect()
    table = pads.dataset(output / "generations").to_table(columns=["num_tokens", "finished_at"])
    middle = middle_rate(pc.sum(table["num_tokens"]).as_py(), table["finished_at"].to_pylist())
    return {"tokens_per_s": middle, "tokens_per_s_whole": record.results["tokens_per_s"]}, record.counts


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Tokens a second of each, one after the other on the same cores, and the ratios."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        folder = Path(scratch)
        ours, counts = synthesized(folder / "groups", ENGINE, NUM_REQUESTS)
        say(f"  trimtab synthesize: {ours}, {counts}")
        given = {"plan": str(folder / "groups" / "plan"), "model": str(models.fetch(MODEL)),
                 "engine": ENGINE.model_dump(mode="json")}  # fmt: skip
        peers = {}
        for name in (*BARE.values(), "hf"):
            peers[name] = side("tests.bench._engine_side", given | {"side": name}, folder / "side.log")
            say(f"  {name}: {peers[name]}")
    figures = {f"{clock}_vs_{peer}": ours[clock] / peers[name][clock]
               for clock in ours for peer, name in BARE.items()} | ours  # fmt: skip
    figures["tokens_per_s_vs_hf_generate"] = ours["tokens_per_s"] / peers["hf"]["tokens_per_s"]
    settings = {"model": MODEL, "requests": NUM_REQUESTS, "counts": counts, "peers": peers, "max_tokens": 128,
                "engine": ENGINE.model_dump(mode="json"), "hf_batch": 40, "hf_rows": HF_ROWS,
                "decoding": "greedy", "bare_vllm": "its own defaults, with our binding, cache space, eager mode, dtype",
                "clock": "the middle half of the rows, by the time at which they were done; HF: all its batches",
                "clock_whole": "from the first row in the engine to the last one out; loading left out"}  # fmt: skip
    return figures, settings
