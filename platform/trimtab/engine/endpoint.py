"""An OpenAI-compatible endpoint as a stage of Ray Data; retries are the SDK's own."""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from trimtab.engine.config import OpenAIEngine
from trimtab.engine.vllm_stage import LIGHT_CPUS
from trimtab.schemas import Generation


def endpoint_stage(rows: Any, engine: OpenAIEngine) -> Any:
    """Plan rows to generations, by an endpoint."""
    import ray

    return rows.map_batches(
        EndpointCaller, fn_constructor_args=(engine,), batch_size=engine.rows_per_batch,
        compute=ray.data.ActorPoolStrategy(size=1), **LIGHT_CPUS,
    )  # fmt: skip


class EndpointCaller:
    """Ray Data actor that sends a batch to an endpoint, a bounded number of requests at a time."""

    def __init__(self, engine: OpenAIEngine) -> None:
        self.engine = engine

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        made = asyncio.run(self._all(rows))
        return {field: [row[field] for row in made] for field in Generation.model_fields}

    async def _all(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from openai import AsyncOpenAI

        engine, gate = self.engine, asyncio.Semaphore(self.engine.num_concurrent_requests)
        key = os.environ.get(engine.api_key_env) or "none"
        async with AsyncOpenAI(
            base_url=engine.base_url, api_key=key, timeout=engine.timeout_s, max_retries=engine.max_retries
        ) as client:
            return await asyncio.gather(*(self._one(client, gate, row) for row in rows))

    async def _one(self, client: Any, gate: asyncio.Semaphore, row: dict[str, Any]) -> dict[str, Any]:
        from openai import OpenAIError

        made = Generation(id=row["id"], shard=row["shard"], text="", num_prompt_tokens=0, num_tokens=0).model_dump()
        started = time.monotonic()
        async with gate:
            try:
                answer = await client.chat.completions.create(model=self.engine.model, **_request_body(row))
            except OpenAIError as error:
                return made | {"error": f"{type(error).__name__}: {error}"[:500]}
        usage = answer.usage
        counts = {"num_prompt_tokens": usage.prompt_tokens, "num_tokens": usage.completion_tokens} if usage else {}
        clock = {"seconds": time.monotonic() - started, "finished_at": time.time()}
        return made | {"text": answer.choices[0].message.content or ""} | counts | clock


def _request_body(row: dict[str, Any]) -> dict[str, Any]:
    """A chat request; an open assistant turn is continued by vLLM's two fields, behind a closed one comes a new one."""
    messages = [{"role": "system", "content": row["system"]}] if row["system"] else []
    messages.append({"role": "user", "content": row["prompt"]})
    body = {
        "messages": messages, "max_tokens": int(row["max_tokens"]), "temperature": float(row["temperature"]),
        "top_p": float(row["top_p"]), "seed": int(row["seed"]),
    }  # fmt: skip
    if row["prefill"]:
        messages.append({"role": "assistant", "content": row["prefill"]})
        if not row["reopen"]:
            body["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
    return body
