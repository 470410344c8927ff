"""The data plane's own limits: bytes and seconds a row and a file, and what a row takes on disk.

Synthetic committed files are read by the product's own code, at 75,000 and 750,000 ids and in small and large files,
each in a process of its own. ``trimtab plan`` extrapolates from the slopes.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.bench._data_plane_side import WORDS, write_source
from tests.bench._training import side
from trimtab.console import say
from trimtab.schemas import (
    SCHEMAS,
    Generation,
    PlanRow,
    PreferencePair,
    RankedGroup,
    Request,
    Response,
    make_id,
    pairs,
    write_rows,
    write_table,
)
from trimtab.training.store import TokenizedGroup, write_groups

PLAN_ROWS = 2500
TEXTS = 500
# (name, ids, rows of a committed file)
RESUMES = (("few", 75_000, 128), ("many", 750_000, 128), ("small_files", 75_000, 16))
SELECTED = (5_000, 20_000)
STORED = (50_000, 500_000)
TEXT_CHARS = (540, 1080)
DISK_ROWS = 3000


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Slopes between a small and a large size, and the measurements behind them."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch:
        folder = Path(scratch)
        measured = {"resume": _resumes(folder), "select": _selects(folder), "store": _stores(folder)}
        disk = {
            cls.__name__: _bytes_of(folder, cls) for cls in (Request, PlanRow, Generation, RankedGroup, PreferencePair)
        }
        listed = _file_overhead(folder)
    figures = _resume_slopes(measured["resume"]) | {
        "driver_bytes_per_request": _slope(measured["select"], SELECTED, "select", "peak_bytes"),
        "seconds_per_1000_requests": 1000 * _slope(measured["select"], SELECTED, "select", "seconds"),
        "worker_bytes_per_group": _slope(measured["store"], STORED, "store", "kept_bytes"),
        "disk_bytes_per_file": listed,
        "disk_bytes_per_row": {name: found["per_row"] for name, found in disk.items()},
        "disk_bytes_per_char": {name: found["per_char"] for name, found in disk.items()},
    }  # fmt: skip
    settings = {"resumes": RESUMES, "selected": SELECTED, "stored": STORED, "measured": measured, "disk": disk,
                "disk_rows": DISK_ROWS,
                "memory": "above the process's size after a small run of the same; peak: the kernel's high mark",
                "texts": "the shipped words in a random order, which compress worse than sentences"}  # fmt: skip
    return figures, settings


def _resume_slopes(measured: dict[str, Any]) -> dict[str, float]:
    """Two unknowns (an id's share, a file's share) from three sizes, for the driver's memory and seconds."""
    (_, few, per_file), (_, many, _), (_, _, per_small) = RESUMES
    more_files = few / per_small - few / per_file
    files_of_more_ids = (many - few) / per_file

    def total(name: str, key: str) -> float:
        steps = measured[name].values()
        return float(sum(s[key] for s in steps) if key == "seconds" else max(s[key] for s in steps))

    found = {}
    for key in ("peak_bytes", "seconds"):
        file_share = max(0.0, (total("small_files", key) - total("few", key)) / more_files)
        found[f"file_{key}"] = file_share
        found[f"id_{key}"] = max(
            0.0, (total("many", key) - total("few", key) - files_of_more_ids * file_share) / (many - few)
        )
    verify = measured["many"]["verify"]["seconds"] + measured["many"]["look_again"]["seconds"]
    listed = measured["small_files"]["look_again"]["seconds"] / (few / per_small)
    filtered = 8 + sys.getsizeof(make_id("limits"))  # an array of Python strings, as Ray Data keeps them
    return {"seconds_per_1000_files_listed": 1000 * listed, "filter_bytes_per_id": filtered,
            "driver_bytes_per_id": found["id_peak_bytes"], "driver_bytes_per_file": found["file_peak_bytes"],
            "seconds_per_1000_ids": 1000 * found["id_seconds"], "seconds_per_1000_files": 1000 * found["file_seconds"],
            "seconds_resume_750k_ids": total("many", "seconds"), "seconds_verify_750k_ids": verify,
            "driver_mib_750k_ids": total("many", "peak_bytes") / 2**20}  # fmt: skip


def _slope(measured: dict[str, Any], sizes: Sequence[int], step: str, key: str) -> float:
    small, large = (measured[str(size)][step][key] for size in sizes)
    return float((large - small) / (sizes[1] - sizes[0]))


def _measure(folder: Path, what: str, path: Path, warm: Path) -> dict[str, Any]:
    given = {"what": what, "path": str(path), "warm": str(warm)}
    found = side("tests.bench._limits_side", given, folder / "side.log")
    seconds = sum(step["seconds"] for step in found.values())
    peak = max(step["peak_bytes"] for step in found.values())
    say(f"  {what} {path.name}: {seconds:.1f} s, {peak / 2**20:.1f} MiB")
    return found


def _resumes(folder: Path) -> dict[str, Any]:
    _write_committed(warm := folder / "warm", 2_000, 100)
    found = {}
    for name, num, per_file in RESUMES:
        _write_committed(folder / name, num, per_file)
        found[name] = _measure(folder, "resume", folder / name, warm)
    return found


def _write_committed(folder: Path, num: int, rows_per_file: int) -> None:
    """A finished plan as Ray Data leaves it: plan files, generation files, and a checkpoint beside each of these."""
    import pyarrow as pa

    texts = [_text(random.Random(number), TEXT_CHARS[0]) for number in range(TEXTS)]
    ids = [make_id("limits", number) for number in range(num)]
    for number, start in enumerate(range(0, num, PLAN_ROWS)):
        some = ids[start : start + PLAN_ROWS]
        write_table(folder / "plan" / f"{number:05d}-0.parquet", _plan_table(some, texts))
    now = time.time()
    for number, start in enumerate(range(0, num, rows_per_file)):
        some = ids[start : start + rows_per_file]
        count = len(some)
        written = [f"{texts[int(i, 16) % TEXTS]} ({i})" for i in some]
        columns = {"id": some, "text": written, "num_prompt_tokens": [200] * count, "num_tokens": [120] * count,
                   "error": [""] * count, "shard": [start // PLAN_ROWS] * count, "seconds": [0.1] * count,
                   "finished_at": [now] * count}  # fmt: skip
        name = f"0_{number:06d}"
        write_table(folder / "generations" / f"{name}-0.parquet", pa.table(columns, schema=SCHEMAS[Generation]))
        write_table(folder / "checkpoint" / f"{name}.parquet", pa.table({"id": some}))


def _plan_table(ids: list[str], texts: list[str]) -> Any:
    import pyarrow as pa

    rows = [PlanRow(id=i, request_id=i, kind="corrected", prompt=texts[0][:240], max_tokens=128) for i in ids]
    return pa.Table.from_pylist([row.model_dump() for row in rows], schema=SCHEMAS[PlanRow])


def _selects(folder: Path) -> dict[str, Any]:
    write_source(warm := folder / "warm.jsonl", 500)
    found = {}
    for num in SELECTED:
        write_source(path := folder / f"{num}.jsonl", num)
        found[str(num)] = _measure(folder, "select", path, warm)
    return found


def _stores(folder: Path) -> dict[str, Any]:
    def groups(num: int) -> Iterable[TokenizedGroup]:
        return (TokenizedGroup(make_id("group", i), [1, 2, 3], [[4, 5], [6, 7]], [0, 0], 1) for i in range(num))

    write_groups(warm := folder / "warm.arrow", groups(1000))
    found = {}
    for num in STORED:
        write_groups(path := folder / f"{num}.arrow", groups(num))
        found[str(num)] = _measure(folder, "store", path, warm)
    return found


def _text(rng: random.Random, num_chars: int) -> str:
    return " ".join(rng.choices(WORDS, k=num_chars))[:num_chars]


def _bytes_of(folder: Path, cls: Any) -> dict[str, float]:
    """Bytes on disk a row besides its texts, and a character of its texts, from two lengths."""
    sizes = []
    for chars in TEXT_CHARS:
        rows = list(_rows(cls, chars))
        write_rows(path := folder / f"{cls.__name__}-{chars}.parquet", cls, rows)
        sizes.append((path.stat().st_size / len(rows), sum(_chars(row) for row in rows) / len(rows)))
    (small, few), (large, many) = sizes
    per_char = (large - small) / (many - few)
    return {
        "per_char": per_char,
        "per_row": max(0.0, small - per_char * few),
        "bytes_per_row_540": small,
        "chars_540": few,
    }


def _chars(row: Any) -> int:
    if isinstance(row, RankedGroup):
        return len(row.prompt) + sum(len(response.text) for response in row.responses)
    return sum(
        len(getattr(row, name, None) or "")
        for name in ("prompt", "harmful", "safe", "prefill", "text", "chosen", "rejected")
    )


def _rows(cls: Any, chars: int) -> Iterable[Any]:
    """Rows as a run has them: five generations a request, six answers a group, fifteen pairs a group."""
    rng = random.Random(chars)
    for number in range(DISK_ROWS // 5):
        request = Request(id=make_id(number), prompt=_text(rng, 160), harmful=_text(rng, chars), safe=_text(rng, chars),
                          source_row=number)  # fmt: skip
        if cls is Request:
            yield request
            continue
        if cls in (PlanRow, Generation):
            yield from _made(cls, request, rng, chars)
            continue
        answers = tuple(Response(role="corrected", text=_text(rng, chars)) for _ in range(6))
        group = RankedGroup(
            id=request.id, source="c2_syn", configuration="harmless", prompt=request.prompt, responses=answers
        )
        yield from [group] if cls is RankedGroup else pairs(group)


def _made(cls: Any, request: Request, rng: random.Random, chars: int) -> Iterable[Any]:
    for kind in range(5):
        row_id = make_id(request.id, kind)
        if cls is PlanRow:
            yield PlanRow(id=row_id, request_id=request.id, kind="corrected", prompt=request.prompt,
                          prefill=request.harmful[: chars * (kind + 1) // 6], max_tokens=128)  # fmt: skip
        else:
            yield Generation(id=row_id, text=_text(rng, chars), num_prompt_tokens=200, num_tokens=120,
                             seconds=rng.random(), finished_at=time.time())  # fmt: skip


def _file_overhead(folder: Path) -> float:
    """Bytes that a file of generations takes beside its rows: what the same rows take more in files of 32."""
    rows = list(_rows(Generation, TEXT_CHARS[0]))
    write_rows(whole := folder / "whole.parquet", Generation, rows)
    parts = [rows[start : start + 32] for start in range(0, len(rows), 32)]
    total = 0
    for number, part in enumerate(parts):
        write_rows(path := folder / "split" / f"{number}.parquet", Generation, part)
        total += path.stat().st_size
    return (total - whole.stat().st_size) / (len(parts) - 1)
