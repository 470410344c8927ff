"""Why the trie learns otherwise than shuffled pairs: the same groups and seed under three changes, one at a time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.bench.training_quality import described, make_groups, one
from trimtab.console import quiet, say

SEED = 0
CHANGES: dict[str, dict[str, Any]] = {
    "pairwise_in_order": {"objective": "pairwise", "pair_order": "grouped"},  # are correlated steps what differs?
    "ranked_3_epochs": {"objective": "ranked", "num_train_epochs": 3},  # still in less time than pairwise's one
    "ranked_twice_the_rate": {"objective": "ranked", "learning_rate": 4e-4},  # or is it the length of the steps?
}


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Corr_mean, validation and seconds of each change."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        groups = make_groups(Path(scratch) / "groups")
        found = {}
        for name, change in CHANGES.items():
            found[name] = one(Path(scratch) / name, groups, SEED, **change)
            say(f"  {name}: {found[name]}")
    return found, described() | {"seed": SEED, "changes": {name: str(change) for name, change in CHANGES.items()}}
