"""TRL's DPOTrainer on pairs that are token ids already, with its numbers under our names."""

from __future__ import annotations

from typing import Any

import torch
from trl import DPOTrainer

from trimtab.training.trainer import BadLossError

NAMES = {"loss": "dpo_loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}


class PairwiseTrainer(DPOTrainer):
    """DPOTrainer whose datasets hold ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Nothing to do: the ids come from ``chat.py``, the one renderer."""
        return dataset

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss, which must be a number."""
        loss = super().compute_loss(*args, **kwargs)
        value = loss[0] if isinstance(loss, tuple) else loss
        if not torch.isfinite(value):
            step = self.state.global_step + 1
            raise BadLossError(f"the loss is {value.item()} at step {step}; lower learning_rate; "
                               "the last good checkpoint is kept")  # fmt: skip
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's numbers, and those of a validation under our names too: checkpoints are chosen by them."""
        super().log(logs, start_time)
        logs |= {f"eval_{ours}": logs[f"eval_{theirs}"] for theirs, ours in NAMES.items() if f"eval_{theirs}" in logs}
