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
    from transformers import AutoTokenizer

    from trimtab.training.loop import hooks, load_model
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
    return PairwiseTrainer(
        model=load_model(arguments["model"], config), args=args, train_dataset=train_set, eval_dataset=validation,
        processing_class=AutoTokenizer.from_pretrained(arguments["model"]),
        callbacks=hooks(config, output, arguments["validate"]),
    )  # fmt: skip


def _dataset(ids: Sequence[str], config: TrainingConfig, output: Path) -> Any:
    """The pairs as a Dataset whose files all workers share: TRL keeps its reference scores beside them."""
    from datasets import Dataset

    wanted = {"groups": output / "groups.arrow", "ids": list(ids), "adjacent": config.pairs == "adjacent"}
    return Dataset.from_generator(pair_rows, gen_kwargs=wanted, cache_dir=str(output / "pairs"))


def dpo_config(config: TrainingConfig, scratch: str, pairs_per_step: int, validates: bool) -> Any:
    """TRL's configuration: one pair a forward pass, the pairs of a step accumulated."""
    from trl import DPOConfig

    from trimtab.training.loop import arguments_of_both

    parts = max(1, round(pairs_per_step / config.num_workers))
    norm = config.loss_type == "sigmoid" and config.length_normalization
    return DPOConfig(
        **arguments_of_both(config, scratch, parts, validates), per_device_eval_batch_size=1, beta=config.beta,
        loss_type=["sigmoid_norm" if norm else config.loss_type], max_length=None,
        precompute_ref_log_probs=config.lora is None,
        train_sampling_strategy="random" if config.pair_order == "shuffled" else "sequential",
    )  # fmt: skip
