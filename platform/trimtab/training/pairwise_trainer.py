"""TRL's DPOTrainer on pairs that are token ids already, with its numbers under our names."""

from __future__ import annotations

from typing import Any

from trl import DPOTrainer

NAMES = {"loss": "dpo_loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}


class PairwiseTrainer(DPOTrainer):
    """DPOTrainer whose datasets hold ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``."""

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Nothing to do: the ids come from ``chat.py``, the one renderer."""
        return dataset

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """TRL's evaluation, with our names beside its own."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics | {f"eval_{ours}": metrics[f"eval_{theirs}"] for theirs, ours in NAMES.items()
                          if f"eval_{theirs}" in metrics}  # fmt: skip
