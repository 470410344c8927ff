"""The data plane alone: 50,000 requests → 250,000 stored generations → 750,000 pairs as Parquet, on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.bench._data_plane_side import ROWS_PER_BATCH, TEXTS
from tests.bench._training import MODEL, side
from trimtab import models
from trimtab.console import quiet, say

SIZES = (5_000, 16_000, 50_000)


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Seconds and peak memory of the largest size, and the exponent of time over size."""
    import numpy as np

    measured = []
    for num in SIZES:
        with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
            given = {"num": num, "model": str(models.fetch(MODEL)), "folder": scratch}
            measured.append(side("tests.bench._data_plane_side", given, Path(scratch) / "side.log"))
            say(f"  {measured[-1]}")
    largest = measured[-1]
    assert largest["exported"]["pairs"] == 750_000
    seconds = [found["seconds"] for found in measured]
    exponent = float(np.polyfit(np.log(SIZES), np.log(seconds), 1)[0])
    last = float(np.log(seconds[-1] / seconds[-2]) / np.log(SIZES[-1] / SIZES[-2]))
    figures = {"seconds_750k_pairs": largest["seconds"], "peak_gib": largest["peak_gib"], "time_exponent": exponent,
               "time_exponent_of_the_last_step": last}  # fmt: skip
    settings = {"rows_per_block": ROWS_PER_BATCH, "stored_texts": TEXTS, "checkpointing": True, "measured": measured,
                "clock": "from reading the requests file to the last pair, on a connected idle local Ray",
                "memory": "summed PSS of driver, Ray, workers and object store, less the idle cluster"}  # fmt: skip
    return figures, settings
