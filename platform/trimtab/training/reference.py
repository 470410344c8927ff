"""Reference log-probabilities: one trie pass before training, stored by group id (never by row index)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.training.data import TokenizedGroup
from trimtab.training.trie import build_forest

if TYPE_CHECKING:
    from trimtab.training.policy import TriePolicy

SCHEMA = pa.schema([("id", pa.string()), ("log_probs", pa.list_(pa.float64()))])


def score(policy: TriePolicy, groups: list[TokenizedGroup], path: Path, report: int = 8) -> None:
    """Write the summed log-probability of each response of each group to ``path``; a file that is there is kept."""
    import torch

    from trimtab.training.policy import to_tensors

    if path.is_file():
        return
    rows, device = [], next(policy.parameters()).device
    policy.eval()
    with torch.no_grad():
        for group in groups:
            forest = build_forest([(group.prompt, group.responses)])
            log_probs = policy(**to_tensors(forest, device))
            rows.append({"id": group.id, "log_probs": [float(log_probs[p].double().sum()) for p in forest.paths[0]]})
            if len(rows) % report == 0:
                path.with_suffix(".count").write_text(str(len(rows)), encoding="utf-8")
    part = path.with_suffix(".part")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), part)
    part.replace(path)


def read(folder: Path) -> dict[str, list[float]]:
    """Reference log-probabilities of every group, by its id."""
    tables = [pq.read_table(path, schema=SCHEMA) for path in sorted(folder.glob("reference-*.parquet"))]
    return {row["id"]: row["log_probs"] for table in tables for row in table.to_pylist()}
