"""An OpenAI-compatible endpoint as a stage of Ray Data; retries are the SDK's own."""

from __future__ import annotations

import asyncio
import os
import time
from json import JSONDecodeError
from typing import Any, NamedTuple

from trimtab.config import InputError
from trimtab.engine.config import OpenAIEngine
from trimtab.engine.vllm_stage import LIGHT_CPUS, reopens
from trimtab.safety import configuration_of
from trimtab.schemas import Generation

REFUSALS = ("BadRequestError", "PermissionDeniedError", "UnprocessableEntityError")
"""The SDK's names of 400, 403 and 422: what a gate or a filter in front of a model answers."""
NO_COMPLETION = "the server's answer is no chat completion"


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
                body = _request_body(row, by_name=self.engine.configurations == "safety")
                answer = await client.chat.completions.create(model=self.engine.model, **body)
            except JSONDecodeError:
                return made | {"error": NO_COMPLETION}
            except (OpenAIError, InputError) as error:
                return made | {"error": f"{type(error).__name__}: {error}"[:500]}
        found = read_completion(answer)
        if found is None:
            return made | {"error": NO_COMPLETION}
        return made | found._asdict() | {"seconds": time.monotonic() - started, "finished_at": time.time()}


class Completion(NamedTuple):
    """What a model behind an endpoint wrote, and what it took; 0 where the server doesn't say."""

    text: str
    num_prompt_tokens: int
    num_tokens: int


def read_completion(answer: Any) -> Completion | None:
    """The text of a chat completion; None where it is none: servers that only resemble one may leave any part out."""
    try:
        message = answer.choices[0].message
        text = message.content or message.refusal or ""
    except (AttributeError, IndexError, TypeError):
        return None
    if not isinstance(text, str):
        return None
    prompt, written = (getattr(answer.usage, f"{name}_tokens", None) or 0 for name in ("prompt", "completion"))
    return Completion(text.encode("utf-8", "replace").decode(), prompt, written)  # half of a pair can't be kept


def was_refused(error: str) -> bool:
    """Whether a generation's error says that the endpoint would not take the request, rather than that it failed."""
    return error.partition(":")[0] in REFUSALS


def _request_body(row: dict[str, Any], by_name: bool = False) -> dict[str, Any]:
    """A chat request; an open assistant turn is continued by vLLM's two fields, behind a closed one comes a new one.

    Args:
        by_name: the configuration goes into ``safety``; see ``OpenAIEngine.configurations``.

    Raises:
        InputError: ``by_name``, and the row's system prompt is no configuration's.
    """
    messages = [{"role": "system", "content": row["system"]}] if row["system"] and not by_name else []
    messages.append({"role": "user", "content": row["prompt"]})
    extra: dict[str, Any] = {"safety": _named(row["system"])} if row["system"] and by_name else {}
    body = {
        "messages": messages, "max_tokens": int(row["max_tokens"]), "temperature": float(row["temperature"]),
        "top_p": float(row["top_p"]), "seed": int(row["seed"]),
    }  # fmt: skip
    if row["prefill"]:
        messages.append({"role": "assistant", "content": row["prefill"]})
        if not reopens(row):
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
    return body | ({"extra_body": extra} if extra else {})


def _named(system: str) -> dict[str, str]:
    """A configuration as a trimtab endpoint takes it.

    Raises:
        InputError: the system prompt is no configuration's.
    """
    found = configuration_of(system)
    if found is None:
        raise InputError("engine.configurations", "safety", "a system prompt is no configuration's", "use system")
    return found.model_dump(exclude_none=True)
