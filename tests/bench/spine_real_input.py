"""The same loop on 197 rows of the published C²-EVAL set (not in this repository), 60 prompts held out."""

from __future__ import annotations

from typing import Any

from tests.bench import spine_sample
from tests.bench._figures import SHARED

OVERRIDES = ("num_evaluation_prompts=60", "min_words=60")


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and settings of one run of the pipeline on real input."""
    return spine_sample.run((f"data={SHARED / 'c2_eval_subset.jsonl'}", *OVERRIDES))
