"""The driver of the fault drill: ``trimtab synthesize`` in a process that can be killed, which logs what was generated.

Each row that leaves the engine adds its id to a log, so that rows that were generated and lost can be counted.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from trimtab.cluster import RayConfig
from trimtab.console import quiet
from trimtab.engine import VLLMEngine
from trimtab.engine import run as engine_run
from trimtab.engine.vllm_stage import LIGHT
from trimtab.synthesis import run as synthesis
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe

NUM_REQUESTS, MAX_TOKENS, ROWS_PER_BATCH = 24, 16, 6
ENGINE_CPUS = 3
"""More than the head has, so that the engine stands on a worker node, which can be killed."""
ENGINE = VLLMEngine(
    max_num_seqs=2, kv_cache_gib=1, max_model_len=1024, rows_per_batch=ROWS_PER_BATCH, num_concurrent_batches=1,
    cpus_per_actor=ENGINE_CPUS, cores_per_actor=1,
)  # fmt: skip


class Logged:
    """Adds the ids of the rows that pass to a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{row['id']}\n".encode())
        os.close(descriptor)
        return row


def main() -> None:
    """JSON arguments: ``output``, ``model``, ``log``, ``address`` of the cluster."""
    given = json.loads(sys.argv[1])
    real = engine_run.engine_stage

    def logged_stage(rows: Any, model: Path | None, engine: Any) -> Any:
        return real(rows, model, engine).map(Logged, fn_constructor_args=(given["log"],), **LIGHT)

    engine_run.engine_stage = logged_stage
    recipe = CourseCorrectionRecipe(num_requests=NUM_REQUESTS, max_tokens=MAX_TOKENS, near_duplicates=None)
    config = SynthesisConfig(
        output=Path(given["output"]), model=given["model"], recipe=recipe, engine=ENGINE,
        quality=QualityConfig(min_words=0, max_repeated_share=None), ray=RayConfig(address=given["address"]),
    )  # fmt: skip
    with quiet(Path(f"{given['output']}.log")):
        synthesis.run(config)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
