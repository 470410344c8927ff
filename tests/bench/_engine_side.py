"""A peer of our engine on the same plan, as a process of its own: bare vLLM, or transformers' generate."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab.chat import Chat
from trimtab.cluster import cores_of_this_host
from trimtab.engine import VLLMEngine, engine_env, engine_kwargs, weight_type
from trimtab.schemas import PlanRow, read_rows

HF_BATCH = 40
HF_ROWS = 240
"""So many rows are enough for a steady rate of ``generate``, which takes three times as long."""
NUM_WARM_UP = 8
GIVEN = ("VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS", "VLLM_NO_USAGE_STATS")
"""What bare vLLM gets of our environment; the rest is its own."""


def main() -> None:
    """JSON arguments: ``side`` (one of MAKE), ``plan`` (folder of rows), ``model`` (folder), ``engine`` (config).

    With ``part`` and ``rows`` it takes every ``rows``-th row of the plan, from ``part`` on.
    """
    given = json.loads(sys.argv[1])
    engine = VLLMEngine.model_validate(given["engine"])
    os.environ |= ENVS[given["side"]](engine)  # now: OpenMP reads it once, when torch is loaded
    rows = read_rows(Path(given["plan"]), PlanRow)[given.get("part", 0) :: given.get("rows", 1)]
    chat = Chat.from_folder(given["model"])
    prompts = [chat.prompt_ids(row.system, row.prompt, row.prefill) for row in rows]
    made = MAKE[given["side"]](prompts, rows[0].max_tokens, given["model"], engine)
    print(json.dumps(made | {"tokens_per_s": made["tokens"] / made["seconds"]}))


def _vllm(prompts: list[list[int]], max_tokens: int, model: str, engine: VLLMEngine) -> dict[str, Any]:
    """``vllm.LLM`` as it is, on the same cores and with the same cache space as our own actor, eager, same dtype."""
    kept = ("max_model_len", "dtype", "enforce_eager", "seed")
    arguments = {name: engine_kwargs(engine)[name] for name in kept}
    return timed(prompts, _greedy(max_tokens), model, arguments)


def bare_env(engine: VLLMEngine) -> dict[str, str]:
    """vLLM's own way of working, with our actor's cache space and on all cores."""
    return {name: engine_env(engine)[name] for name in GIVEN} | {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{cores_of_this_host() - 1}"
    }


def _vllm_ours(prompts: list[list[int]], max_tokens: int, model: str, engine: VLLMEngine) -> dict[str, Any]:
    """``vllm.LLM`` with all arguments of our own actor: what Ray and the stages around the engine cost."""
    return timed(prompts, _greedy(max_tokens), model, engine_kwargs(engine))


def _greedy(max_tokens: int) -> dict[str, float]:
    return {"temperature": 0.0, "max_tokens": max_tokens}


def timed(
    prompts: list[list[int]], sampling: dict[str, float], model: str, arguments: dict[str, Any]
) -> dict[str, Any]:
    """What ``vllm.LLM`` makes of all prompts, and the seconds; loading and warm-up left out."""
    from vllm import LLM, SamplingParams

    llm, params = LLM(model=model, **arguments), SamplingParams(**sampling)
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    llm.generate(inputs[:NUM_WARM_UP], params, use_tqdm=False)
    llm.reset_prefix_cache()
    started = time.perf_counter()
    done = llm.generate(inputs, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    cached = sum(row.num_cached_tokens or 0 for row in done) / sum(map(len, prompts))
    tokens = sum(len(row.outputs[0].token_ids) for row in done)
    return {"tokens": tokens, "seconds": seconds, "rows": len(done), "cached_share": cached}


def _hf(prompts: list[list[int]], max_tokens: int, model: str, engine: VLLMEngine) -> dict[str, Any]:
    """transformers' ``generate``, greedy, in padded batches of 40 in the plan's order, on all cores."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=weight_type(engine)).eval()
    tokens, prompts = 0, prompts[:HF_ROWS]
    with torch.inference_mode():
        network.generate(torch.tensor([prompts[0]]), max_new_tokens=4, do_sample=False)
        started = time.perf_counter()
        for start in range(0, len(prompts), HF_BATCH):
            batch = tokenizer.pad({"input_ids": prompts[start : start + HF_BATCH]}, return_tensors="pt")
            out = network.generate(**batch, max_new_tokens=max_tokens, do_sample=False)
            written = out[:, batch["input_ids"].shape[1] :].tolist()
            tokens += sum(_num_written(ids, tokenizer.eos_token_id) for ids in written)
        seconds = time.perf_counter() - started
    return {"tokens": tokens, "seconds": seconds, "rows": len(prompts)}


def _num_written(ids: list[int], end: int) -> int:
    """Tokens up to the end of the turn, that one included, without the padding behind it."""
    return ids.index(end) + 1 if end in ids else len(ids)


MAKE = {"vllm": _vllm, "vllm_with_our_arguments": _vllm_ours, "hf": _hf}
ENVS: dict[str, Callable[[VLLMEngine], dict[str, str]]] = {
    "vllm": bare_env, "vllm_with_our_arguments": engine_env, "hf": lambda engine: {},
}  # fmt: skip


if __name__ == "__main__":
    main()
