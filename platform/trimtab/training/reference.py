"""Reference log-probabilities: one pass before training, stored by group id and model (never by row index).

The groups are scored in chunks, each a file of its own once it is whole: an interrupted pass goes on with the
next chunk. All workers share each chunk, so the files don't depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trimtab.schemas import write_table
from trimtab.training.store import GroupStore

SCHEMA = pa.schema([("id", pa.string()), ("log_probs", pa.list_(pa.float64()))])
CHUNK = 16


def score(scorer: Any, form: Any, store: GroupStore, ids: Sequence[str], folder: Path, device: Any) -> None:
    """Write the summed log-probability of each response of each group into ``folder``; what is there is kept.

    Args:
        scorer: the model before its first step, as ``policy.as_scorer`` made it, perhaps in DeepSpeed's engine.
        ids: the groups, in the same order on all workers, which all call this.
    """
    from torch import distributed

    folder.mkdir(parents=True, exist_ok=True)
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    done = [{path.name for path in folder.glob("*.parquet")}]
    if world > 1:
        distributed.broadcast_object_list(done)
    for start in range(0, len(ids), CHUNK):
        name = f"{start:08d}.parquet"
        if name in done[0]:
            continue
        rows: list[Any] = _score_share(scorer, form, store, ids[start : start + CHUNK], (rank, world), device)
        if world > 1:
            gathered: list[Any] = [None] * world
            distributed.all_gather_object(gathered, rows)
            rows = [row for share in gathered for row in share]
        if rank == 0:
            write_table(folder / name, pa.Table.from_pylist(rows, schema=SCHEMA))
    if world > 1:
        distributed.barrier()


def _score_share(
    scorer: Any, form: Any, store: GroupStore, ids: Sequence[str], place: tuple[int, int], device: Any
) -> list[dict[str, Any]]:
    """This worker's share of a chunk; a short share repeats its last group, so that ZeRO-3's gathers stay in step."""
    rank, world = place
    own = list(ids[rank::world])
    rows = [{"id": group_id, "log_probs": score_group(scorer, form, store, group_id, device)} for group_id in own]
    if len(own) < -(-len(ids) // world):
        score_group(scorer, form, store, (own or list(ids))[-1], device)
    return rows


def score_group(scorer: Any, form: Any, store: GroupStore, group_id: str, device: Any) -> list[float]:
    """Summed log-probability of each response of one group, in nats, without gradient."""
    import torch

    from trimtab.training.policy import lay_out

    group = store[group_id]
    layout = lay_out([(group.prompt, group.responses)], form, device)
    with torch.no_grad():
        log_probs = scorer(**layout.tensors)
    return layout.totals(log_probs)[0]


def read(folder: Path) -> dict[str, list[float]]:
    """Reference log-probabilities of every group, by its id."""
    tables = [pq.read_table(path, schema=SCHEMA) for path in sorted(folder.glob("*.parquet"))]
    return {row["id"]: row["log_probs"] for table in tables for row in table.to_pylist()}


def num_missing(folder: Path, ids: Sequence[str]) -> int:
    """Chunks of the groups that are not scored yet."""
    return sum(not (folder / f"{start:08d}.parquet").is_file() for start in range(0, len(ids), CHUNK))


def num_scored(folder: Path, total: int) -> int:
    """Groups that are scored so far."""
    return min(total, CHUNK * len(list(folder.glob("*/*.parquet"))))
