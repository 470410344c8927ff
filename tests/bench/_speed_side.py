"""One side of ``training_speed`` in a process of its own: its seconds and its peak memory, as one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from trimtab.training import reference
from trimtab.training.config import TrainingConfig
from trimtab.training.pairwise import pair_rows
from trimtab.training.pairwise_trainer import PairwiseTrainer
from trimtab.training.plan import Item, make_plan
from trimtab.training.policy import as_scorer
from trimtab.training.store import GroupStore
from trimtab.training.trainer import Forwards, RankedTrainer
from trimtab.training.trie import num_nodes

GROUPS_PER_STEP = 4


def main() -> None:
    """Run the side that the JSON argument names."""
    given = json.loads(sys.argv[1])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        found = {"ranked": ranked, "trl": trl, "lm": lm}[given["side"]](given, scratch)
    found["seconds"] = time.monotonic() - started
    found["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def common(scratch: str, accumulation: int, batch: int) -> dict[str, Any]:
    """The settings that both sides have: bf16 weights and autocast, AdamW, all parameters."""
    return {
        "output_dir": scratch, "use_cpu": True, "bf16": True, "num_train_epochs": 1, "learning_rate": 1e-6,
        "per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "report_to": [],
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
        "dataloader_pin_memory": False, "remove_unused_columns": False, "seed": 0,
    }  # fmt: skip


def load(folder: str) -> Any:
    """The model in bfloat16."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")


def ranked(given: dict[str, Any], scratch: str) -> dict[str, Any]:
    """trimtab: the reference pass over tries, then one epoch of steps of four groups."""
    store = GroupStore(Path(given["groups"]))
    ids = store.ids[: given["num_groups"]]
    items = [Item(i, i, num_nodes(store[i].prompt, store[i].responses)) for i in ids]
    steps = [items[start : start + GROUPS_PER_STEP] for start in range(0, len(items), GROUPS_PER_STEP)]
    plan, parts = make_plan(steps, 1, None)
    model = as_scorer(load(given["model"]))
    cpu = torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        scores = {i: reference.score_group(model.eval(), "trie", store, i, cpu) for i in ids}
    trainer = RankedTrainer(
        TrainingConfig(output=Path(scratch)), store, model=model, train_dataset=Forwards(store, plan),
        args=TrainingArguments(**common(scratch, parts, 1)),
    )  # fmt: skip
    trainer.reference = scores
    before = time.monotonic()
    trainer.train()
    return {"train_seconds": time.monotonic() - before, "tokens": sum(item.num_tokens for item in items),
            "steps": trainer.state.global_step}  # fmt: skip


def trl(given: dict[str, Any], scratch: str) -> dict[str, Any]:
    """TRL's DPOTrainer: its own reference pass, then one epoch of the same pairs, the pairs of four groups a step."""
    from datasets import Dataset
    from trl import DPOConfig

    store = GroupStore(Path(given["groups"]))
    rows = list(pair_rows(Path(given["groups"]), store.ids[: given["num_groups"]]))
    batch = given["batch"]
    pairs_per_step = GROUPS_PER_STEP * len(rows) // given["num_groups"]
    values = common(scratch, pairs_per_step // batch, batch)
    args = DPOConfig(**values, precompute_ref_log_probs=True, precompute_ref_batch_size=batch, max_length=None)
    trainer = PairwiseTrainer(
        model=load(given["model"]), args=args, train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given["model"]),
    )  # fmt: skip
    before = time.monotonic()
    trainer.train()
    return {"train_seconds": time.monotonic() - before, "pairs": len(rows), "steps": trainer.state.global_step}


class OneSequence(Trainer):
    """A plain causal-LM step on one sequence of given ids."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The library's own loss of one sequence."""
        return model(input_ids=inputs["input_ids"], labels=inputs["labels"], use_cache=False).loss


def lm(given: dict[str, Any], scratch: str) -> dict[str, Any]:
    """The plain step of the same lengths: as many tokens, one sequence each, the same optimizer."""
    lengths = given["lengths"]
    ids = [torch.randint(10, 40000, (length,)) for length in lengths]
    trainer = OneSequence(
        model=load(given["model"]), args=TrainingArguments(**common(scratch, GROUPS_PER_STEP, 1)),
        train_dataset=[{"input_ids": item[None], "labels": item[None]} for item in ids],
        data_collator=lambda items: items[0],
    )  # fmt: skip
    before = time.monotonic()
    trainer.train()
    return {"train_seconds": time.monotonic() - before, "tokens": sum(lengths), "steps": trainer.state.global_step}


if __name__ == "__main__":
    main()
