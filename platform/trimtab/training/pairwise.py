"""``objective: pairwise``: TRL's own DPOTrainer on the shuffled pairs, the reference that the trie is measured against.

The pairs are made from the same tokenized groups, so both objectives see the same ids; TRL's own template and
tokenizing are left out. A step takes as many pairs as ``groups_per_step`` groups hold on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from trimtab.config import InputError
from trimtab.training.config import TrainingConfig
from trimtab.training.plan import read_plan
from trimtab.training.store import GroupStore


def refuse_what_trl_lacks(config: TrainingConfig) -> None:
    """Settings that only the ranked objective knows.

    Raises:
        InputError: naming the field.
    """
    default = TrainingConfig(output=config.output)
    for name in ("label_smoothing", "likelihood_weight", "pair_weights", "max_tokens"):
        if getattr(config, name) != getattr(default, name):
            problem = "is not known to TRL's DPOTrainer in this form"
            raise InputError(name, getattr(config, name), problem, "leave it out, or use objective=ranked")
    if config.loss_type == "plackett_luce":
        raise InputError("loss_type", config.loss_type, "is not a loss of pairs", "use objective=ranked")


def pair_rows(groups: Path, ids: Sequence[str], adjacent: bool = False) -> Iterator[dict[str, Any]]:
    """The pairs of stored groups, as TRL names the ids of prompt, chosen and rejected."""
    store = GroupStore(groups)
    for group_id in ids:
        group = store[group_id]
        for i, j in combinations(range(len(group.responses)), 2):
            if not adjacent or j == i + 1:
                yield {"prompt_ids": group.prompt, "chosen_ids": group.responses[i],
                       "rejected_ids": group.responses[j]}  # fmt: skip


def train_pairs_worker(arguments: dict[str, Any]) -> None:
    """The train loop of one worker; arguments as for ``loop.run_worker``."""
    from trimtab.training.loop import run_worker

    run_worker(arguments, build_trainer)


def build_trainer(config: TrainingConfig, arguments: dict[str, Any], scratch: str) -> Any:
    """TRL's trainer on this worker, with our step log and checkpoints."""
    from transformers import AutoTokenizer, EarlyStoppingCallback

    from trimtab.training import callbacks
    from trimtab.training.loop import load_model
    from trimtab.training.pairwise_trainer import PairwiseTrainer

    output = Path(arguments["output"])
    plan = read_plan(output / "plan.parquet")
    steps = max(forward.step for forward in plan) + 1
    once = [group_id for forward in plan if forward.weight for group_id in forward.group_ids]
    held = [group_id for forward in read_plan(output / "validation_plan.parquet") if forward.weight
            for group_id in forward.group_ids]  # fmt: skip
    train_set = _dataset(once, config, output)
    validation = _dataset(held, config, output) if held else None
    args = dpo_config(config, scratch, math.ceil(len(train_set) / steps), validation is not None)
    hooks: list[Any] = [callbacks.StepLog(output), callbacks.RayCheckpoints(arguments["validate"])]
    if config.validation.early_stopping_patience:
        hooks.append(EarlyStoppingCallback(config.validation.early_stopping_patience))
    return PairwiseTrainer(
        model=load_model(arguments["model"], config), args=args, train_dataset=train_set, eval_dataset=validation,
        processing_class=AutoTokenizer.from_pretrained(arguments["model"]), callbacks=hooks,
    )  # fmt: skip


def _dataset(ids: Sequence[str], config: TrainingConfig, output: Path) -> Any:
    """The pairs as a Dataset whose files all workers share: TRL keeps its reference scores beside them."""
    from datasets import Dataset

    wanted = {"groups": output / "groups.arrow", "ids": list(ids), "adjacent": config.pairs == "adjacent"}
    return Dataset.from_generator(pair_rows, gen_kwargs=wanted, cache_dir=str(output / "pairs"))


def dpo_config(config: TrainingConfig, scratch: str, pairs_per_step: int, validates: bool) -> Any:
    """TRL's configuration: one pair a forward pass, the pairs of a step accumulated."""
    from trl import DPOConfig

    from trimtab.training.loop import deepspeed_config

    parts = max(1, round(pairs_per_step / config.num_workers))
    norm = config.loss_type == "sigmoid" and config.length_normalization
    accuracy = config.validation.metric == "accuracy"
    return DPOConfig(
        output_dir=scratch, per_device_train_batch_size=1, per_device_eval_batch_size=1,
        gradient_accumulation_steps=parts, num_train_epochs=1, loss_type=["sigmoid_norm" if norm else config.loss_type],
        beta=config.beta, max_length=None, precompute_ref_log_probs=config.lora is None,
        learning_rate=config.learning_rate, lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio, max_grad_norm=config.max_grad_norm, seed=config.seed,
        bf16=config.dtype == "bfloat16", use_cpu=not config.use_gpu, save_steps=config.save_steps,
        eval_strategy="steps" if validates else "no", eval_steps=config.save_steps,
        metric_for_best_model=("eval_accuracy" if accuracy else "eval_dpo_loss") if validates else None,
        greater_is_better=accuracy if validates else None, gradient_checkpointing=config.gradient_checkpointing,
        report_to=list(config.report_to), disable_tqdm=True, logging_strategy="steps", logging_steps=1,
        dataloader_pin_memory=False, save_on_each_node=True, restore_callback_states_from_checkpoint=True,
        deepspeed=deepspeed_config(config, parts),
    )  # fmt: skip
