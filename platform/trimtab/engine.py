"""The one seam to a language model: a plan of generations in, generations out, exactly one for each id.

``type: vllm`` runs vLLM actors under Ray Data (``ray.data.llm``) on CPU or GPU; ``type: openai`` calls
an OpenAI-compatible endpoint. Prompts are rendered and tokenized by ``trimtab.chat`` alone: Ray's own
template and tokenize stages are off. Rows are committed in small Parquet files with Ray Data's row
checkpoints, so that the same call goes on after a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from trimtab.chat import Chat
from trimtab.config import Config, InputError, placement
from trimtab.console import Progress, polling, say
from trimtab.schemas import Generation, PlanRow, read_rows, write_rows

# The cheap stages must never starve the engine nor deadlock on two CPUs, and each of their processes
# costs seconds of imports: a small share of a CPU each, and few of them.
LIGHT_CPUS, LIGHT_TASKS = {"num_cpus": 0.1}, 2
LIGHT = {**LIGHT_CPUS, "concurrency": LIGHT_TASKS}


class VLLMEngine(Config):
    """vLLM actors on this Ray, each holding the model."""

    type: Literal["vllm"] = "vllm"
    accelerators: int = placement(0, ge=0)
    """GPUs of one actor; 0 runs on CPU."""
    tensor_parallel_size: int = placement(1, ge=1)
    """Passed to vLLM; ``accelerators`` must be a multiple of it."""
    num_actors: int = placement(1, ge=1)
    """Engine actors, a fixed pool."""
    cpus_per_actor: float = placement(1, gt=0)
    """Logical CPUs that one actor asks of Ray."""
    max_model_len: int = Field(2048, ge=16)
    """Longest prompt and answer together, in tokens."""
    block_size: int = placement(32, ge=16)
    """KV-cache block in tokens; small blocks let short shared prefixes hit the cache (a multiple of 32 on CPU)."""
    kv_cache_gib: int = placement(2, ge=1)
    """CPU only: memory of the KV cache."""
    max_num_seqs: int = placement(128, ge=1)
    """Sequences decoded together."""
    rows_per_batch: int = placement(32, ge=1)
    """Rows of one Ray Data batch and of one committed file: what a crash can cost."""
    num_concurrent_batches: int = placement(8, ge=1)
    """Batches in flight in one actor."""
    seed: int = 0
    """Seed of the engine's sampling; with batching, a sampled text is not exactly repeatable."""
    dtype: str = "auto"
    """Weight type, as vLLM names it."""
    engine_kwargs: dict[str, Any] = placement(default_factory=dict)
    """Further arguments for vLLM, as they are."""


class OpenAIEngine(Config):
    """An OpenAI-compatible chat endpoint."""

    type: Literal["openai"] = "openai"
    base_url: str = placement()
    """Address of the API, ending in /v1."""
    model: str
    """Model name to send."""
    api_key_env: str = placement("OPENAI_API_KEY")
    """Environment variable that holds the key; never the key itself."""
    num_concurrent_requests: int = placement(16, ge=1)
    """Requests in flight."""
    timeout_s: float = placement(120, gt=0)
    """Time for one request."""
    max_retries: int = placement(6, ge=0)
    """Retries of the SDK, which honours Retry-After."""
    rows_per_batch: int = placement(32, ge=1)
    """Rows of one committed file: what a crash can cost."""


EngineConfig = Annotated[VLLMEngine | OpenAIEngine, Field(discriminator="type")]


def generate(
    plan: list[PlanRow], folder: Path, model: Path | None, engine: EngineConfig, label: str
) -> list[Generation]:
    """Generate every row of a plan, in Parquet files below ``folder``; rows already there are kept.

    Args:
        plan: rows with unique ids, ordered so that shared prefixes stand together.
        folder: holds ``plan.parquet``, ``generations/`` and ``checkpoint/``.
        model: the model's folder (vLLM); not used by an endpoint.
        engine: where the model runs.
        label: the name of the progress line.

    Returns:
        One generation for each row, in the plan's order. A row that failed carries its ``error``.

    Raises:
        InputError: two rows have one id, or a part is unreadable.
    """
    twice = [row_id for row_id, count in Counter(row.id for row in plan).items() if count > 1]
    if twice:
        raise InputError("plan", twice[0], "two rows have this id", "remove duplicate requests from the source")
    folder.mkdir(parents=True, exist_ok=True)
    parts = folder / "generations"
    num_before = _count_rows(parts)
    if num_before:
        say(f"  {label}: {min(num_before, len(plan))}/{len(plan)} rows are there already, going on")
    if num_before < len(plan):
        write_rows(folder / "plan.parquet", PlanRow, plan)
        with _watch(label, parts, len(plan)):
            _run(folder.resolve(), model, engine)
    found = {row.id: row for row in _read_parts(parts)}
    missing = [row.id for row in plan if row.id not in found]
    if missing:
        raise RuntimeError(f"{label}: {len(missing)} of {len(plan)} rows were not generated (first {missing[0]})")
    return [found[row.id] for row in plan]


def _run(folder: Path, model: Path | None, engine: EngineConfig) -> None:
    import ray
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        id_column="id", checkpoint_path=str(folder / "checkpoint"), delete_checkpoint_on_success=False
    )
    context.enable_progress_bars = False
    context.actor_init_retry_on_errors = True
    try:
        rows = ray.data.read_parquet(str(folder / "plan.parquet"), **LIGHT)
        rows = rows.repartition(target_num_rows_per_block=engine.rows_per_batch)
        if isinstance(engine, VLLMEngine):
            rows = _vllm(engine, _required(model))(rows).map(_to_generation, **LIGHT)
        else:
            rows = rows.map_batches(
                _EndpointCaller, fn_constructor_args=(engine,), batch_size=engine.rows_per_batch,
                compute=ray.data.ActorPoolStrategy(size=1), **LIGHT_CPUS,
            )  # fmt: skip
        rows.write_parquet(str(folder / "generations"), ray_remote_args=LIGHT_CPUS, concurrency=LIGHT_TASKS)
    finally:
        context.checkpoint_config = None


def _required(model: Path | None) -> Path:
    if model is None:
        raise InputError("model", None, "the vllm engine needs a model", "give a model folder or name")
    return model


def _vllm(engine: VLLMEngine, model: Path) -> Any:
    """Ray's processor for this engine: token ids in, text out."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    config = vLLMEngineProcessorConfig(
        model_source=str(model),
        engine_kwargs=engine_kwargs(engine),
        runtime_env={"env_vars": engine_env(engine)},
        placement_group_config={"bundles": bundles(engine)},
        batch_size=engine.rows_per_batch,
        max_concurrent_batches=engine.num_concurrent_batches,
        concurrency=(engine.num_actors, engine.num_actors),
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False, tokenize_stage=False, detokenize_stage=False,
    )  # fmt: skip
    return build_processor(
        config, preprocess=partial(_to_engine_row, str(model)),
        preprocess_map_kwargs=LIGHT, postprocess_map_kwargs=LIGHT,
    )  # fmt: skip


def bundles(engine: VLLMEngine) -> list[dict[str, float]]:
    """What one engine asks of Ray: a bundle for each tensor-parallel worker."""
    bundle: dict[str, float] = {"CPU": engine.cpus_per_actor}
    if engine.accelerators:
        bundle["GPU"] = engine.accelerators / engine.tensor_parallel_size
    return [bundle] * engine.tensor_parallel_size


def engine_kwargs(engine: VLLMEngine) -> dict[str, Any]:
    """vLLM's engine arguments.

    Sampling is seeded for the engine, not for each request: on CPU vLLM 0.29 draws requests with a seed of
    their own one by one (half the speed) and dies when one of them is prefilled in chunks.
    """
    values: dict[str, Any] = {
        "max_model_len": engine.max_model_len, "block_size": engine.block_size, "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs, "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": True, "enforce_eager": not engine.accelerators, "seed": engine.seed,
        "trust_remote_code": False,
    }  # fmt: skip
    return values | engine.engine_kwargs


def engine_env(engine: VLLMEngine) -> dict[str, str]:
    """Environment of a vLLM process: on CPU all cores (vLLM's own choice leaves one idle) and bounded memory."""
    env = {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if engine.accelerators:
        return env
    cores = len(os.sched_getaffinity(0))
    env["VLLM_CPU_KVCACHE_SPACE"] = str(engine.kv_cache_gib)
    if engine.num_actors == 1:
        env["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{cores - 1}" if cores > 1 else "0"
    else:
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        env["OMP_NUM_THREADS"] = str(max(1, cores // engine.num_actors))
    return env


def _to_engine_row(model: str, row: dict[str, Any]) -> dict[str, Any]:
    """A plan row as Ray's vLLM stage wants it."""
    ids = Chat.from_folder(model).prompt_ids(row["system"], row["prompt"], row["prefill"])
    sampling = {"max_tokens": row["max_tokens"], "temperature": row["temperature"], "top_p": row["top_p"]}
    return {"id": row["id"], "tokenized_prompt": ids, "sampling_params": sampling}


def _to_generation(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"], "text": row["generated_text"], "num_prompt_tokens": row["num_input_tokens"],
        "num_tokens": row["num_generated_tokens"], "error": row.get("__inference_error__") or "",
    }  # fmt: skip


class _EndpointCaller:
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

        made = {"id": row["id"], "text": "", "num_prompt_tokens": 0, "num_tokens": 0, "error": ""}
        async with gate:
            try:
                answer = await client.chat.completions.create(model=self.engine.model, **_request_body(row))
            except OpenAIError as error:
                return made | {"error": f"{type(error).__name__}: {error}"[:500]}
        usage = answer.usage
        counts = {"num_prompt_tokens": usage.prompt_tokens, "num_tokens": usage.completion_tokens} if usage else {}
        return made | {"text": answer.choices[0].message.content or ""} | counts


def _request_body(row: dict[str, Any]) -> dict[str, Any]:
    """A chat request; an open assistant turn is continued by vLLM's two fields."""
    messages = [{"role": "system", "content": row["system"]}] if row["system"] else []
    messages.append({"role": "user", "content": row["prompt"]})
    body = {
        "messages": messages, "max_tokens": int(row["max_tokens"]), "temperature": float(row["temperature"]),
        "top_p": float(row["top_p"]), "seed": int(row["seed"]),
    }  # fmt: skip
    if row["prefill"]:
        messages.append({"role": "assistant", "content": row["prefill"]})
        body["extra_body"] = {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _read_parts(parts: Path) -> list[Generation]:
    import pyarrow as pa

    try:
        return read_rows(parts, Generation)
    except (pa.ArrowInvalid, OSError) as error:
        problem = f"a part is not readable Parquet ({error})"
        raise InputError("generations", parts, problem, "delete the output folder and run again") from error


def _count_rows(parts: Path, known: dict[Path, int] | None = None) -> int:
    """Rows in finished files; ``known`` remembers the files already counted."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = {} if known is None else known
    for path in parts.glob("*.parquet") if parts.is_dir() else ():
        if path not in known:
            with contextlib.suppress(pa.ArrowInvalid, OSError):  # still being written
                known[path] = pq.ParquetFile(path).metadata.num_rows
    return sum(known.values())


@contextlib.contextmanager
def _watch(label: str, parts: Path, total: int) -> Iterator[None]:
    """Show how many rows are committed while the block runs."""
    known: dict[Path, int] = {}
    with Progress(label, total, "rows") as progress, polling(lambda: progress.update(_count_rows(parts, known))):
        yield
