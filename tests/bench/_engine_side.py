"""A peer of our engine on the same plan, as a process of its own: bare vLLM, or transformers' generate."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from trimtab.chat import Chat
from trimtab.engine import VLLMEngine, engine_env, engine_kwargs
from trimtab.schemas import PlanRow, read_rows

HF_BATCH = 40
NUM_WARM_UP = 8


def main() -> None:
    """JSON arguments: ``side`` (vllm or hf), ``plan`` (folder of rows), ``model`` (folder), ``engine`` (config)."""
    given = json.loads(sys.argv[1])
    rows = read_rows(Path(given["plan"]), PlanRow)
    chat = Chat.from_folder(given["model"])
    prompts = [chat.prompt_ids(row.system, row.prompt, row.prefill) for row in rows]
    engine = VLLMEngine.model_validate(given["engine"])
    made = {"vllm": _vllm, "hf": _hf}[given["side"]](prompts, rows[0].max_tokens, given["model"], engine)
    print(json.dumps(made | {"rows": len(rows), "tokens_per_s": made["tokens"] / made["seconds"]}))


def _vllm(prompts: list[list[int]], max_tokens: int, model: str, engine: VLLMEngine) -> dict[str, Any]:
    """``vllm.LLM`` with the arguments and the environment of our own actor; loading and warm-up left out."""
    os.environ |= engine_env(engine)
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, **engine_kwargs(engine))
    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    llm.generate(inputs[:NUM_WARM_UP], sampling, use_tqdm=False)
    llm.reset_prefix_cache()
    started = time.perf_counter()
    done = llm.generate(inputs, sampling, use_tqdm=False)
    seconds = time.perf_counter() - started
    return {"tokens": sum(len(row.outputs[0].token_ids) for row in done), "seconds": seconds}


def _hf(prompts: list[list[int]], max_tokens: int, model: str, engine: VLLMEngine) -> dict[str, Any]:
    """transformers' ``generate``, greedy, in padded batches of 40 in the plan's order, on all cores."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    tokens = 0
    with torch.inference_mode():
        network.generate(torch.tensor([prompts[0]]), max_new_tokens=4, do_sample=False)
        started = time.perf_counter()
        for start in range(0, len(prompts), HF_BATCH):
            batch = tokenizer.pad({"input_ids": prompts[start : start + HF_BATCH]}, return_tensors="pt")
            out = network.generate(**batch, max_new_tokens=max_tokens, do_sample=False)
            written = out[:, batch["input_ids"].shape[1] :].tolist()
            tokens += sum(_num_written(ids, tokenizer.eos_token_id) for ids in written)
        seconds = time.perf_counter() - started
    return {"tokens": tokens, "seconds": seconds}


def _num_written(ids: list[int], end: int) -> int:
    """Tokens up to the end of the turn, that one included, without the padding behind it."""
    return ids.index(end) + 1 if end in ids else len(ids)


if __name__ == "__main__":
    main()
