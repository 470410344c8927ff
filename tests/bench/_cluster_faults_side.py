"""The driver of a cluster drill: the whole pipeline but its endpoint, in a process that can be killed.

What leaves the engine is logged by id, so that work that was done twice can be counted; training logs its steps itself.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench._faults_side import Logged
from trimtab import cluster, pipeline
from trimtab.cluster import RayConfig
from trimtab.console import quiet
from trimtab.engine import VLLMEngine
from trimtab.engine import run as engine_run
from trimtab.engine.vllm_stage import LIGHT
from trimtab.evaluation import report
from trimtab.pipeline import PipelineConfig, TrainingSettings
from trimtab.synthesis import run as synthesis
from trimtab.synthesis.quality import QualityConfig
from trimtab.training import run as training

STAGES = ("base", "groups", "train", "tuned", "report")
NUM_REQUESTS, NUM_EVALUATED, MAX_TOKENS, ENGINE_CPUS = 16, 4, 12, 3


def config_of(given: dict[str, Any]) -> PipelineConfig:
    """A pipeline of minutes; the same for every drill."""
    engine = VLLMEngine(
        max_num_seqs=4, kv_cache_gib=1, max_model_len=1024, rows_per_batch=8, num_concurrent_batches=1,
        cpus_per_actor=ENGINE_CPUS, cores_per_actor=1,
    )  # fmt: skip
    return PipelineConfig(
        output=Path(given["output"]), model=given["model"], data=Path(given["data"]), engine=engine,
        num_evaluation_prompts=NUM_EVALUATED, num_requests=NUM_REQUESTS, min_words=1, synthesis_max_tokens=MAX_TOKENS,
        max_tokens=MAX_TOKENS, safe_response="source", quality=QualityConfig(min_words=0, max_repeated_share=None),
        training=TrainingSettings(max_length=1500, save_steps=2), ray=RayConfig(address=given["address"]),
    )  # fmt: skip


def run(config: PipelineConfig) -> None:
    """The stages of ``trimtab pipeline`` up to the report; each is skipped when it is done."""
    folder, tuned = config.output, str(config.output / "train" / "model")
    pipeline.measure(config, config.model, folder / "base", None)
    synthesis.run(pipeline.synthesis_config(config, config.model))
    training.run(pipeline.training_config(config, config.model))
    pipeline.measure(config, tuned, folder / "tuned", folder / "base" / "retention")
    report.run(pipeline.report_config(config))
    cluster.disconnect()


def logged(log: str, row: dict[str, Any]) -> dict[str, Any]:
    """A function, so that Ray Data joins it to the stage that writes: a process less on each node."""
    return Logged(log)(row)


def main() -> None:
    """JSON arguments: ``output``, ``model``, ``data``, ``log`` of the ids, ``address`` of the cluster."""
    given = json.loads(sys.argv[1])
    real = engine_run.engine_stage

    def logged_stage(rows: Any, model: Path | None, engine: Any) -> Any:
        return real(rows, model, engine).map(partial(logged, given["log"]), **LIGHT)

    engine_run.engine_stage = logged_stage
    with quiet(Path(f"{given['output']}.log")):
        run(config_of(given))


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
