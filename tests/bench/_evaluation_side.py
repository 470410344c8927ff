"""A peer of ``trimtab evaluate prefill`` on its plan, as a process of its own: transformers' generate, or bare vLLM.

Both take the cases k by k, which is the order of the released script.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench._engine_side import bare_env, timed
from trimtab.chat import Chat
from trimtab.engine import VLLMEngine, engine_kwargs, weight_type
from trimtab.schemas import PlanRow, read_rows

HF_BATCH = 10


def main() -> None:
    """JSON arguments: ``side`` (vllm or hf), ``plan`` (folder of rows), ``model`` (folder), ``engine`` (config)."""
    given = json.loads(sys.argv[1])
    engine = VLLMEngine.model_validate(given["engine"])
    if given["side"] == "vllm":
        os.environ |= bare_env(engine)  # now: OpenMP reads it once, when torch is loaded
    rows = sorted(read_rows(Path(given["plan"]), PlanRow), key=lambda row: int(row.kind.removeprefix("k=")))
    chat = Chat.from_folder(given["model"])
    prompts = [chat.prompt_ids(row.system, row.prompt, row.prefill, row.reopen) for row in rows]
    if given["side"] == "vllm":
        made = _vllm(prompts, rows[0], given["model"], engine)
    else:
        made = _hf(prompts, rows[0], given["model"], engine)
    print(json.dumps(made | {"cases": len(rows), "cases_per_s": len(rows) / made["seconds"]}))


def _vllm(prompts: list[list[int]], like: PlanRow, model: str, engine: VLLMEngine) -> dict[str, Any]:
    """``vllm.LLM`` as it works by itself, with our actor's arguments but its own block size; loading left out."""
    kwargs = {name: value for name, value in engine_kwargs(engine).items() if name != "block_size"}
    sampling = {"temperature": like.temperature, "top_p": like.top_p, "max_tokens": like.max_tokens}
    return timed(prompts, sampling, model, kwargs)


def _hf(prompts: list[list[int]], like: PlanRow, model: str, engine: VLLMEngine) -> dict[str, Any]:
    """transformers' ``generate`` in padded batches of ten, on all cores, as the released script calls it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=weight_type(engine)).eval()
    decoding: dict[str, Any] = {"do_sample": False}
    if like.temperature:
        decoding = {"do_sample": True, "temperature": like.temperature, "top_p": like.top_p}
    with torch.inference_mode():
        network.generate(torch.tensor([prompts[0]]), max_new_tokens=4, **decoding)
        started = time.perf_counter()
        for start in range(0, len(prompts), HF_BATCH):
            batch = tokenizer.pad({"input_ids": prompts[start : start + HF_BATCH]}, return_tensors="pt")
            network.generate(**batch, max_new_tokens=like.max_tokens, **decoding)
        seconds = time.perf_counter() - started
    return {"seconds": seconds}


if __name__ == "__main__":
    main()
