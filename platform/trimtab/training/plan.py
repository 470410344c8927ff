"""The seeded order of groups: a group and its flip stand side by side, in one optimizer step.

A flip asks for the opposite ranking of the same responses. In a shared step what the two have in common
should cancel, leaving what depends on the system prompt. The gain over random order is not measured yet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence


def order(ids: Sequence[str], sources: Sequence[str], epoch: int, seed: int) -> list[str]:
    """The ids of one epoch: sources shuffled by (seed, epoch), the groups of a source in a row.

    Args:
        ids: group ids.
        sources: what each group was made from, in the same order; a group and its flips have one source.
    """
    by_source: dict[str, list[str]] = {}
    for group_id, source in zip(ids, sources, strict=True):
        by_source.setdefault(source, []).append(group_id)
    drawn = sorted(by_source)
    random.Random(f"{seed}/{epoch}").shuffle(drawn)
    return [group_id for source in drawn for group_id in by_source[source]]
