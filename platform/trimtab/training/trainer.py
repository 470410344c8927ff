"""``transformers.Trainer`` with the loss of ranked groups; DeepSpeed, schedules and checkpoints are the library's."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trimtab.training.config import TrainingConfig
from trimtab.training.data import TokenizedGroup
from trimtab.training.loss import ranked_dpo_loss
from trimtab.training.plan import order
from trimtab.training.policy import to_tensors
from trimtab.training.trie import build_forest


class BadLossError(RuntimeError):
    """The loss of a batch is not a number."""


class RankedTrainer(Trainer):
    """Trainer over lists of groups; the model is a ``TriePolicy``."""

    def __init__(self, config: TrainingConfig, reference: dict[str, list[float]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.reference = reference
        self.seen: dict[str, list[float]] = defaultdict(list)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean over the batch's groups of their DPO loss and likelihood term."""
        groups: list[TokenizedGroup] = inputs["groups"]
        forest = build_forest([(group.prompt, group.responses) for group in groups])
        log_probs = model(**to_tensors(forest, self.args.device))
        losses = [self._group_loss(log_probs, *item) for item in zip(groups, forest.paths, strict=True)]
        loss = torch.stack(losses).mean()
        if not torch.isfinite(loss):
            names = ", ".join(group.id for group in groups)
            raise BadLossError(f"the loss is {loss.item()} on groups {names}; lower learning_rate or drop them")
        self.seen["tokens"].append(len(forest.token_ids))
        return loss

    def _group_loss(self, log_probs: Tensor, group: TokenizedGroup, paths: list[Any]) -> Tensor:
        places = [torch.from_numpy(path).to(log_probs.device) for path in paths]
        policy = torch.stack([log_probs[place].sum() for place in places])
        reference = torch.tensor(self.reference[group.id], dtype=policy.dtype, device=policy.device)
        dpo, margins = ranked_dpo_loss(policy, reference, self.config.beta, self.config.label_smoothing)
        demonstrations = zip(places[: group.num_demonstrations], group.learn_from, strict=False)
        length = self.config.likelihood_tokens
        nll = -torch.cat([log_probs[place[start:][:length]] for place, start in demonstrations]).mean()
        for name, value in (("dpo_loss", dpo), ("nll", nll), ("accuracy", (margins > 0).float().mean()),
                            ("margin", margins.mean())):  # fmt: skip
            self.seen[name].append(float(value.detach()))
        return dpo + self.config.likelihood_weight * nll if self.config.likelihood_weight else dpo

    def _get_train_sampler(self, train_dataset: Any = None) -> PlannedOrder:
        return PlannedOrder(self.train_dataset, self.config.seed)

    def take_seen(self) -> dict[str, float]:
        """Means of what was seen since the last call (tokens: their sum)."""
        means = {name: sum(values) / len(values) for name, values in self.seen.items() if name != "tokens"}
        means["tokens"] = sum(self.seen["tokens"])
        self.seen.clear()
        return means


class PlannedOrder(Sampler[int]):
    """The seeded order of ``trimtab.training.plan``, another one each epoch."""

    def __init__(self, groups: list[TokenizedGroup], seed: int) -> None:
        self.place = {group.id: number for number, group in enumerate(groups)}
        self.sources = [group.source for group in groups]
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's data loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.place)

    def __iter__(self) -> Iterator[int]:
        return iter([self.place[group_id] for group_id in order(list(self.place), self.sources, self.epoch, self.seed)])


class StepLog(TrainerCallback):
    """Appends one JSON line for each optimizer step: what the progress line and the report's plot read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer: RankedTrainer | None = None
        self.started = time.monotonic()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the step's clock (kept over accumulation)."""
        self.started = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the step's line."""
        assert self.trainer is not None
        seen = {name: round(value, 5) for name, value in self.trainer.take_seen().items()}
        line = {"step": state.global_step, "steps": state.max_steps, **seen,
                "seconds": round(time.monotonic() - self.started, 3)}  # fmt: skip
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def collate(groups: list[TokenizedGroup]) -> dict[str, Any]:
    """A batch is the list of its groups; the forest is built where the loss is."""
    return {"groups": groups}
