"""One size of the data plane: requests to pairs, with stored text where the engine would be. A process of its own.

The product's own stages run as they are: reading, split, near-duplicates, plan, Ray Data with row checkpoints,
groups, data report, export. Only ``engine_stage`` is another one here.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from trimtab import cluster
from trimtab.cluster import RayConfig
from trimtab.console import quiet
from trimtab.data import lines
from trimtab.engine import VLLMEngine
from trimtab.engine import run as engine_run
from trimtab.engine.vllm_stage import LIGHT_TASKS
from trimtab.sources import SourceConfig
from trimtab.synthesis import export
from trimtab.synthesis import run as synthesis
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe

ROWS_PER_BATCH = 2500
NUM_HELD_OUT = 48
TEXTS = 500
WORDS = [word for line in (*lines("openers.txt"), *lines("triggers.txt"), *lines("benign_prompts.txt"))
         for word in line.split()]  # fmt: skip


def write_source(path: Path, num: int) -> None:
    """PKU-SafeRLHF rows of mild made-up words: prompts all different, responses of 85 to 140 words."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(num):
            prompt = f"How would {' '.join(rng.choices(WORDS, k=12))} {number} go?"
            answers = [" ".join(_with_points(rng, rng.choices(WORDS, k=rng.randint(85, 140)))) for _ in range(2)]
            file.write(json.dumps({
                "prompt": prompt, "response_0": answers[0], "response_1": answers[1], "is_response_0_safe": False,
                "is_response_1_safe": True,
            }) + "\n")  # fmt: skip


def _with_points(rng: random.Random, words: list[str]) -> list[str]:
    return [f"{word}{rng.choice(',.;')}" if rng.random() < 0.12 else word for word in words]


class StoredText:
    """What stands where the engine would: for each row one of the stored texts, the same for the same id."""

    def __init__(self) -> None:
        rng = random.Random(1)
        self.texts = [f" {' '.join(_with_points(rng, rng.sample(WORDS, k=min(90, len(set(WORDS))))))}."
                      for _ in range(TEXTS)]  # fmt: skip

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        now, ids = time.time(), batch["id"]
        texts = [f"{self.texts[int(row_id, 16) % TEXTS]} ({row_id})" for row_id in ids]
        return {
            "id": ids, "text": texts, "num_prompt_tokens": [200] * len(ids), "num_tokens": [120] * len(ids),
            "error": [""] * len(ids), "shard": batch["shard"], "seconds": [0.1] * len(ids),
            "finished_at": [now] * len(ids),
        }  # fmt: skip


def stored_stage(rows: Any, model: Path | None, engine: Any) -> Any:
    """Plan rows to stored generations."""
    return rows.map_batches(StoredText, batch_size=ROWS_PER_BATCH, num_cpus=0.5, concurrency=LIGHT_TASKS)


class Peak:
    """The highest summed PSS of this process and everything below it, sampled in a thread, in GiB."""

    def __init__(self) -> None:
        self.highest, self._stop = 0.0, threading.Event()
        self.processes: dict[str, float] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            found = pss()
            if sum(found.values()) > self.highest:
                self.highest, self.processes = sum(found.values()), found

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def pss() -> dict[str, float]:
    """PSS in GiB of this process and all its descendants, by title; the object store in shared memory included."""
    found: dict[str, float] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            title = (process.cmdline() or ["?"])[0].rpartition("/")[2]
            found[title] = found.get(title, 0.0) + process.memory_full_info().pss / 2**30
        except psutil.Error:  # it has just ended
            continue
    return found


def main() -> None:
    """JSON arguments: ``num`` requests, ``model`` (a folder), ``folder`` (scratch)."""
    given = json.loads(sys.argv[1])
    folder = Path(given["folder"])
    write_source(folder / "source.jsonl", given["num"] + NUM_HELD_OUT)
    with tempfile.TemporaryDirectory(prefix="td-", ignore_cleanup_errors=True) as ray_folder, quiet(folder / "log"):
        ray_config = RayConfig(temp_dir=Path(ray_folder))
        cluster.connect(ray_config)
        time.sleep(5)
        idle = sum(pss().values())
        engine_run.engine_stage = stored_stage
        with Peak() as peak:
            measured = _run(given, folder, ray_config)
        cluster.disconnect()
    largest = sorted(peak.processes.items(), key=lambda item: -item[1])[:8]
    at_peak = {title: round(gib, 3) for title, gib in largest}
    print(json.dumps(measured | {"peak_gib": peak.highest - idle, "idle_gib": idle, "at_peak_gib": at_peak}))


def _run(given: dict[str, Any], folder: Path, ray_config: RayConfig) -> dict[str, Any]:
    started = time.monotonic()
    recipe = CourseCorrectionRecipe(
        source=SourceConfig(data=folder / "source.jsonl", num_evaluation_prompts=NUM_HELD_OUT), flips=()
    )
    made = synthesis.run(SynthesisConfig(
        output=folder / "groups", model=given["model"], recipe=recipe, ray=ray_config,
        engine=VLLMEngine(rows_per_batch=ROWS_PER_BATCH),
    ))  # fmt: skip
    synthesized = time.monotonic() - started
    exported = export.run(export.ExportConfig(output=folder / "pairs", groups=folder / "groups"))
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in (folder / "pairs").rglob("*.parquet")) / 2**30
    return {"num": given["num"], "seconds": seconds, "synthesis_s": synthesized, "export_s": seconds - synthesized,
            "counts": made.counts, "exported": exported.counts, "pairs_gib": size}  # fmt: skip


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
