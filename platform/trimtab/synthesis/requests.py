"""Which requests a recipe works on, written shard by shard before anything is generated.

``requests/NNNNN.parquet`` hold them, ``requests.json`` (written last) says that they are all there: a resumed
run reads these and never the source again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from trimtab.artifacts import write_text
from trimtab.config import InputError
from trimtab.files import AnyPath, is_file
from trimtab.near_duplicates import Sketches
from trimtab.schemas import CONTENT_CHARS, Quarantined, Request, read_rows, write_rows
from trimtab.sources import SourceConfig, read_requests, split_requests
from trimtab.synthesis.passes import GeneratingRecipe
from trimtab.synthesis.recipes import self_critique
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe, keep

SUMMARY = "requests.json"
Selected = tuple[list[Request], list[Quarantined], dict[str, int]]


def select(recipe: GeneratingRecipe) -> Selected:
    """(requests, quarantined source rows, counts) of a recipe, read from its source.

    Raises:
        InputError: the source can't be used, or no request is left.
    """
    if not isinstance(recipe, CourseCorrectionRecipe):
        requests, bad = self_critique.training_requests(recipe)
        return requests, bad, {}
    requests, bad = read_requests(recipe.source)
    sketches = Sketches()
    training, _ = split_requests(requests, recipe.source, sketches)
    passing = [request for request in training if keep(request, recipe)]
    kept, repeats = _without_near_duplicates(passing, recipe.near_duplicates, sketches)
    refuse_none(kept, recipe.source, len(training), f"lower recipe.min_words ({recipe.min_words})")
    counts = {"training_requests": len(training), "near_duplicates": len(repeats)}
    return kept[: recipe.num_requests], [*bad, *repeats], counts


def refuse_none(kept: Sequence[Request], source: SourceConfig, num_before: int, remedy: str) -> None:
    """An empty selection is an error of the configuration."""
    if not kept:
        problem = f"none of {num_before} training requests passes the filter"
        raise InputError("data", source.path, problem, f"{remedy} or give longer responses")


def _without_near_duplicates(
    requests: list[Request], threshold: float | None, sketches: Sketches
) -> tuple[list[Request], list[Quarantined]]:
    if threshold is None:
        return requests, []
    first = sketches.first_places([request.prompt for request in requests], threshold)
    repeats = [
        Quarantined(source_row=request.source_row, id=request.id, content=request.prompt[:CONTENT_CHARS],
                    reason=f"prompt is a near-duplicate of row {requests[place].source_row + 1}")
        for request, place in zip(requests, first, strict=True) if requests[place] is not request
    ]  # fmt: skip
    return [request for number, request in enumerate(requests) if first[number] == number], repeats


def write_requests(output: AnyPath, selected: Selected, requests_per_shard: int) -> dict[str, int]:
    """Write the shards and their summary; returns the summary."""
    requests, bad, counts = selected
    starts = range(0, len(requests), requests_per_shard)
    for shard, start in enumerate(starts):
        write_rows(request_file(output, shard), Request, requests[start : start + requests_per_shard])
    write_quarantined(output, "source", bad)
    summary = counts | {"requests": len(requests), "shards": len(starts)}
    write_text(output / SUMMARY, json.dumps(summary))
    return summary


def read_summary(output: AnyPath) -> dict[str, int] | None:
    """The summary of requests that are all written; None where they are not."""
    path = output / SUMMARY
    return dict(json.loads(path.read_text(encoding="utf-8"))) if is_file(path) else None


def request_file(output: AnyPath, shard: int) -> AnyPath:
    """Where the requests of a shard stand."""
    return output / "requests" / f"{shard:05d}.parquet"


def read_shard(output: AnyPath, shard: int) -> list[Request]:
    """The requests of a shard."""
    return read_rows(request_file(output, shard), Request)


def write_quarantined(output: AnyPath, name: str, rows: Iterable[Quarantined]) -> int:
    """Write quarantined rows beside the output, or take the file away where there are none any more."""
    path, found = output / "quarantine" / f"{name}.parquet", list(rows)
    if not found:
        path.unlink(missing_ok=True)
        return 0
    return write_rows(path, Quarantined, found)
