"""A stand-in for vLLM in the cluster's benchmarks: an actor that sleeps 50 ms a batch and uses no CPU.

Everything around it is the product's own: ``trimtab.engine.vllm_stage`` builds Ray's vLLM processor, whose stages
(rendering and tokenizing, the actor pool, what is made of the answers) stay as they are; only the class that would
hold an engine is another one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

SLEEP_S = 0.05


class Sleeper:
    """One batch at a time, as an engine that is full; a row's text says on which node, in which process and when."""

    def __init__(self, data_column: str, expected_input_keys: list[str], **_: Any) -> None:
        import ray

        self.node = ray.get_runtime_context().get_node_id()
        self.data_column, self.busy = data_column, asyncio.Lock()

    async def __call__(self, batch: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self.busy:
            await asyncio.sleep(SLEEP_S)
        rows = list(batch[self.data_column])
        made = {"generated_text": f"{self.node} {os.getpid()} {time.time()}", "num_input_tokens": 1,
                "num_generated_tokens": 1, "time_taken_llm": SLEEP_S, "__inference_error__": ""}  # fmt: skip
        yield {self.data_column: [row | made for row in rows]}


def stand_in() -> None:
    """Let processors of this process put sleepers where engines would be."""
    import ray.data.llm

    real = ray.data.llm.build_processor

    def build(*arguments: Any, **settings: Any) -> Any:
        processor = real(*arguments, **settings)
        stage = processor.get_stage_by_name("vLLMEngineStage")
        stage.__dict__["fn"] = Sleeper  # past the check of its type, whose import would load vLLM in each actor
        return processor

    ray.data.llm.build_processor = build
