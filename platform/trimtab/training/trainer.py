"""``transformers.Trainer`` with the losses of ranked groups; DeepSpeed, schedules and trackers are the library's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import Trainer, TrainerControl

from trimtab.training.config import TrainingConfig
from trimtab.training.loss import group_loss
from trimtab.training.metrics import Seen
from trimtab.training.plan import Forward
from trimtab.training.policy import Form, Layout, lay_out
from trimtab.training.store import GroupStore, TokenizedGroup


class BadLossError(RuntimeError):
    """The loss of a batch is not a number."""


class Forwards(Dataset[dict[str, Any]]):
    """The forward passes of a plan; the groups are read from the memory-mapped store when their turn comes."""

    def __init__(self, store: GroupStore, plan: Sequence[Forward]) -> None:
        self.store, self.plan = store, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, place: int) -> dict[str, Any]:
        forward = self.plan[place]
        return {"groups": [self.store[group_id] for group_id in forward.group_ids], "weight": forward.weight}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """One forward pass a batch: how much it holds is the plan's decision."""
    (item,) = items
    return item


class RankedTrainer(Trainer):
    """Trainer over the forward passes of a plan; the model is made by ``policy.as_scorer``."""

    form: Form = "trie"
    reference: dict[str, list[float]]

    def __init__(self, config: TrainingConfig, store: GroupStore, **kwargs: Any) -> None:
        super().__init__(data_collator=collate, **kwargs)
        self.config, self.store = config, store
        self.reference = {}
        self.seen = Seen()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The weighted sum over the pass's groups of preference loss and likelihood term.

        Averaged over workers and accumulated passes it is the mean over the step's groups.
        """
        groups: list[TokenizedGroup] = inputs["groups"]
        layout = lay_out([(group.prompt, group.responses) for group in groups], self.form, self.args.device)
        references = self._references(model, groups, layout)
        log_probs = model(**layout.tensors)
        items = zip(groups, layout.paths, references, strict=True)
        losses = torch.stack([self._group_loss(log_probs, *item, count=inputs["weight"] > 0) for item in items])
        if not torch.isfinite(losses).all():
            bad = [group.id for group, loss in zip(groups, losses, strict=True) if not torch.isfinite(loss)]
            raise BadLossError(
                f"the loss is {losses.sum().item()} at step {self.state.global_step + 1} on groups "
                f"{', '.join(bad)}; lower learning_rate or drop them; the last good checkpoint is kept"
            )
        self.seen.add_tokens(layout.num_tokens if inputs["weight"] > 0 else 0)
        return losses.sum() * inputs["weight"]

    def _references(self, model: Any, groups: list[TokenizedGroup], layout: Layout) -> list[list[float]]:
        """Stored log-probabilities, or those of the same layout with the adapters switched off."""
        if self.config.reference == "precompute":
            return [self.reference[group.id] for group in groups]
        with torch.no_grad(), self.as_reference():
            log_probs = model(**layout.tensors)
        return layout.totals(log_probs)

    def as_reference(self) -> AbstractContextManager[Any]:
        """Within this the model is its own reference: adapters are off. A model without any is left as it is."""
        if self.config.lora is None:
            return nullcontext()
        off: AbstractContextManager[Any] = self.accelerator.unwrap_model(self.model_wrapped).disable_adapter()
        return off

    def _group_loss(
        self, log_probs: Tensor, group: TokenizedGroup, paths: list[Any], reference: list[float], count: bool
    ) -> Tensor:
        places = [torch.from_numpy(path).to(log_probs.device) for path in paths]
        policy = torch.stack([log_probs[place].double().sum() for place in places])  # differences of large sums
        lengths = torch.tensor([len(place) for place in places], dtype=policy.dtype, device=policy.device)
        wanted = torch.tensor(reference, dtype=policy.dtype, device=policy.device)
        dpo, margins = group_loss(policy, wanted, lengths, self.config)
        demonstrations = zip(places[: group.num_demonstrations], group.learn_from, strict=False)
        length = self.config.likelihood_tokens
        nll = -torch.cat([log_probs[place[start:][:length]] for place, start in demonstrations]).mean()
        if count:
            self.seen.add(float(dpo.detach()), float(nll.detach()), margins.tolist())
        return (dpo + self.config.likelihood_weight * nll if self.config.likelihood_weight else dpo).float()

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, pair accuracy (by rank gap too) and margin over the validation plan, over all workers."""
        dataset: Forwards = self.eval_dataset
        kept, self.seen = self.seen, Seen()
        self.model_wrapped.eval()
        with torch.no_grad():
            for place, forward in enumerate(dataset.plan):
                if forward.worker == self.args.process_index:
                    self.compute_loss(self.model_wrapped, dataset[place])
        found, self.seen = self._gather(self.seen), kept
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.means(by_gap=True).items()}
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _gather(self, seen: Seen) -> Seen:
        if self.args.world_size == 1:
            return seen
        shares: list[Any] = [None] * self.args.world_size
        torch.distributed.all_gather_object(shares, seen)
        return Seen.joined(shares)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the step's groups showed, over all workers, to what the library logs of a step."""
        if "loss" in logs:
            seen, self.seen = self._gather(self.seen), Seen()
            logs |= seen.means()
        super().log(logs, start_time)
