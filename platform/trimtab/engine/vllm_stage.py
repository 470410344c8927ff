"""vLLM under Ray Data: the processor, its arguments and its environment on CPU and GPU."""

from __future__ import annotations

import contextlib
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from trimtab.chat import Chat
from trimtab.cluster import Bundles, cores_of_this_host, most_cpus, room_for, sigterm_handler_stays
from trimtab.config import InputError
from trimtab.engine.config import VLLMEngine
from trimtab.host import has_bfloat16

# The cheap stages must never starve the engine nor deadlock on two CPUs, and each of their processes
# costs seconds of imports: a small share of a CPU each, and few of them.
LIGHT_CPUS, LIGHT_TASKS = {"num_cpus": 0.1}, 2
CPUS_TO_READ = 1  # of the stage that reads the plan: what Ray gives a repartition
LIGHT = {**LIGHT_CPUS, "concurrency": LIGHT_TASKS}
ACTORS_PER_LIGHT_TASK = 8  # a task renders and tokenizes some 1,000 rows a second, a large GPU's engine asks for 30

# torch asks the kernel for huge pages where it gives them to those who ask ("madvise"): 5 to 15 % more tokens a second.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}
# On CPU vLLM starts a worker process beside the one that schedules, only to bind its threads, which ``engine_env`` does
# by itself: without it a step costs no message between them (a tenth more tokens a second), a start one import less.
ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
NUCLEUS = "trimtab.engine.nucleus:Nucleus"
# What ``vllm.LLM`` takes; the asynchronous engine, which Ray Data runs, would take a server's 2048.
OFFLINE_BATCHED_TOKENS = {"cpu": 4096, "gpu": 8192}


def vllm_stage(rows: Any, model: Path, engine: VLLMEngine) -> Any:
    """Plan rows to generations, by vLLM actors: token ids in, text out.

    Raises:
        InputError: the engines would leave no CPU of a local Ray to read with, or a cluster can't ever hold one.
    """
    _leave_room(engine)
    with _room_for_engines(engine):  # the nodes start while Ray's processor is imported, which takes as long
        processor = _processor(model, engine)
    return processor(rows)


def _processor(model: Path, engine: VLLMEngine) -> Any:
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    # Nobody reads along: an answer is put together once, at its end.
    kind = "gpu" if engine.accelerators else "cpu"
    offline = {"max_num_batched_tokens": OFFLINE_BATCHED_TOKENS[kind], "stream_interval": engine.max_model_len}
    light = _light(engine)
    has_nucleus = kind == "cpu" and "speculative_config" not in engine.engine_kwargs  # vLLM takes one of the two
    processors = {"logits_processors": [NUCLEUS]} if has_nucleus else {}
    config = vLLMEngineProcessorConfig(
        model_source=str(model),
        engine_kwargs=offline | processors | engine_kwargs(engine),
        runtime_env={"env_vars": engine_env(engine)},
        placement_group_config={"bundles": bundles(engine)},
        batch_size=engine.rows_per_batch,
        max_concurrent_batches=num_batches(engine),
        concurrency=(engine.num_actors, engine.most_actors),
        should_continue_on_error=True,
        log_engine_metrics=True,
        chat_template_stage=False, tokenize_stage=False, detokenize_stage=False,
    )  # fmt: skip
    with sigterm_handler_stays():  # it calls ``ray.init`` once more
        processor = build_processor(
            config, preprocess=partial(_to_engine_row, str(model), has_nucleus),
            preprocess_map_kwargs=light, postprocess_map_kwargs=light,
        )  # fmt: skip
    # Not as ``postprocess``, past which Ray hands rows that failed, and not as a map behind it: Ray joins one map to
    # the stage that writes, and each stage more costs processes and a copy.
    processor.postprocess = partial(_to_generation, processor.DATA_COLUMN)
    return processor


def _light(engine: VLLMEngine) -> dict[str, Any]:
    return LIGHT | {"concurrency": num_light_tasks(engine)}


def _leave_room(engine: VLLMEngine) -> None:
    """Refuse engines that take every CPU: the stage that reads would wait for one for ever, and they for it."""
    total, asked = most_cpus(), engine.most_actors * sum(bundle["CPU"] for bundle in bundles(engine))
    if total is not None and asked + CPUS_TO_READ > total:
        problem = f"engines that ask for {asked:g} CPUs leave none to read with: this Ray has {total:g}"
        remedy = f"start fewer, or raise ray.num_cpus to {math.ceil(asked + CPUS_TO_READ)}"
        raise InputError("engine.num_actors", engine.most_actors, problem, remedy)


def _room_for_engines(engine: VLLMEngine) -> contextlib.AbstractContextManager[None]:
    """Wait for nodes that hold one engine and the stage that reads; those of the others are asked for as well."""
    asking = ("accelerators", "tensor_parallel_size") if engine.accelerators else ("cpus_per_actor",)
    remedy = f"lower {' or '.join(f'engine.{name}' for name in asking)}"
    first: Bundles = [*bundles(engine), {"CPU": CPUS_TO_READ}]
    return room_for(first, f"engine.{asking[0]}", remedy, [bundles(engine)] * (engine.num_actors - 1))


def num_batches(engine: VLLMEngine) -> int:
    """Batches in flight in one actor."""
    return engine.num_concurrent_batches or max(2, math.ceil(2 * engine.max_num_seqs / engine.rows_per_block))


def num_light_tasks(engine: VLLMEngine) -> int:
    """Tasks of each cheap stage around the engines."""
    return LIGHT_TASKS + engine.most_actors // ACTORS_PER_LIGHT_TASK


def bundles(engine: VLLMEngine) -> list[dict[str, float]]:
    """What one engine asks of Ray: a bundle for each tensor-parallel worker; on CPU they are processes of one node."""
    size = engine.tensor_parallel_size
    if not engine.accelerators:
        return [{"CPU": engine.cpus_per_actor * size}]
    return [{"CPU": engine.cpus_per_actor, "GPU": engine.accelerators / size}] * size


def engine_kwargs(engine: VLLMEngine) -> dict[str, Any]:
    """vLLM's engine arguments.

    Sampling is seeded for the engine, not for each request: on CPU vLLM 0.29 draws requests with a seed of
    their own one by one (half the speed) and dies when one of them is prefilled in chunks.
    """
    values: dict[str, Any] = {
        "max_model_len": engine.max_model_len, "block_size": engine.block_size, "dtype": weight_type(engine),
        "max_num_seqs": engine.max_num_seqs, "tensor_parallel_size": engine.tensor_parallel_size,
        "enable_prefix_caching": True, "enforce_eager": not engine.accelerators, "seed": engine.seed,
        "trust_remote_code": False,
    }  # fmt: skip
    if engine.tensor_parallel_size > 1 and not engine.accelerators:
        values["distributed_executor_backend"] = "mp"  # under Ray vLLM would take Ray's, which it has for GPUs alone
    if engine.max_num_batched_tokens:
        values["max_num_batched_tokens"] = engine.max_num_batched_tokens
    return values | engine.engine_kwargs


def weight_type(engine: VLLMEngine) -> str:
    """The weight type that vLLM and transformers are told; ``auto``: the model's own."""
    return "float32" if engine.dtype == "auto" and not engine.accelerators and not has_bfloat16() else engine.dtype


def engine_env(engine: VLLMEngine) -> dict[str, str]:
    """Environment of a vLLM process: on CPU all cores (vLLM's own choice leaves one idle) and bounded memory.

    ``OMP_NUM_THREADS`` is always given: Ray would set it to the actor's logical CPUs, which costs a tenth of the rate.
    """
    env = {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if engine.accelerators:
        return env
    env |= HUGE_PAGES | {"VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib)}
    cores = cores_of_this_host()
    mine = min(cores, engine.cores_per_actor or max(1, cores // engine.most_actors))
    if engine.tensor_parallel_size > 1:
        share = max(1, mine // engine.tensor_parallel_size)
        return env | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(share)}
    # Engines that share a machine must not be bound: they would all take the same cores.
    bound = {"OMP_PLACES": f"{{0:{cores}}}", "OMP_PROC_BIND": "true"} if mine == cores else {}
    return env | ONE_PROCESS | bound | {"OMP_NUM_THREADS": str(mine)}


def _to_engine_row(model: str, has_nucleus: bool, row: dict[str, Any]) -> dict[str, Any]:
    """A plan row as Ray's vLLM stage wants it."""
    ids = Chat.from_folder(model).prompt_ids(row["system"], row["prompt"], row["prefill"], reopens(row))
    top_p = {"top_p": 1.0, "extra_args": {"nucleus": row["top_p"]}} if has_nucleus else {"top_p": row["top_p"]}
    sampling = {"max_tokens": row["max_tokens"], "temperature": row["temperature"], **top_p}
    return {"id": row["id"], "shard": row["shard"], "tokenized_prompt": ids, "sampling_params": sampling}


def reopens(row: dict[str, Any]) -> bool:
    """Whether a plan row asks for a new turn; a plan of an older version has no such column."""
    return bool(row.get("reopen"))


def _to_generation(column: str, columns: dict[str, Any]) -> dict[str, Any]:
    """A row of the engine, which stands in one column, as a generation."""
    row = columns[column]
    error = row.get("__inference_error__") or ""
    return {
        "id": row["id"], "text": row["generated_text"], "num_prompt_tokens": row["num_input_tokens"],
        "num_tokens": row["num_generated_tokens"], "error": error, "shard": row["shard"],
        "seconds": 0.0 if error else row["time_taken_llm"], "finished_at": time.time(),
    }  # fmt: skip
