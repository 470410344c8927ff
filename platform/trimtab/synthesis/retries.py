"""``--retry-quarantined``: plans for the generations that could not be used, made once more and sampled warmer.

A retry of a pass is a folder of its own, ``<pass>/retries/<n>/``, with plan, generations and checkpoint like the
pass itself, so it resumes like one. The ids stay the same: the last attempt counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.files import AnyPath, files_in
from trimtab.schemas import PlanRow, Quarantined, read_rows, write_rows
from trimtab.synthesis.passes import pass_folder


def retry_folders(output: AnyPath, name: str) -> list[AnyPath]:
    """The retries of a pass, in order."""
    return files_in(pass_folder(output, name) / "retries", "[0-9]*")


def attempts_of(output: AnyPath, names: Sequence[str]) -> int:
    """How many retries there are, over all passes."""
    return max((int(folder.name) for name in names for folder in retry_folders(output, name)), default=0)


def quarantined(output: AnyPath) -> list[Quarantined]:
    """All quarantined rows of an output, each once: a later pass may have set the same request aside again."""
    rows = read_rows(output / "quarantine", Quarantined)
    return list({(row.stage, row.id, row.source_row, row.reason): row for row in rows}.values())


def plan_retry(output: AnyPath, names: Sequence[str], temperature: float) -> int:
    """Write the plans of the next retry; returns the number of rows, 0 where no generation is quarantined."""
    wanted = {row.id for row in quarantined(output) if row.stage == "generation"}
    number = attempts_of(output, names) + 1
    count = 0
    for name in names:
        folder = pass_folder(output, name)
        planned = read_rows(folder / "plan", PlanRow)
        rows = [_warmer(row, temperature, number) for row in planned if row.id in wanted]
        if rows:
            count += write_rows(folder / "retries" / f"{number:03d}" / "plan" / "00000.parquet", PlanRow, rows)
    return count


def _warmer(row: PlanRow, temperature: float, number: int) -> PlanRow:
    return row.model_copy(update={"temperature": max(row.temperature, temperature), "seed": row.seed + 1000 * number})
