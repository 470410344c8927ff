"""What the training benchmarks have in common: real ranked groups, and one side of a comparison as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench._figures import SHARED
from trimtab import cluster, models
from trimtab.chat import Chat
from trimtab.sources import SourceConfig
from trimtab.synthesis import run as synthesis
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe
from trimtab.training.config import TrainingConfig
from trimtab.training.data import Prepared, tokenized
from trimtab.training.store import GroupStore, write_groups

MODEL = "smollm2-135m"
ROOT = Path(__file__).parents[2]


def source() -> SourceConfig:
    """The published C²-EVAL subset where it lies beside the repository, else the shipped sample."""
    published = SHARED / "c2_eval_subset.jsonl"
    return SourceConfig(data=published if published.is_file() else None, num_evaluation_prompts=40)


def synthesized(folder: Path, num_requests: int, **recipe_: Any) -> Path:
    """C²-SYN groups of real requests, written by the real model (128 new tokens, as in the paper), no flips."""
    recipe = CourseCorrectionRecipe.model_validate(
        {"source": source(), "num_requests": num_requests, "flips": (), **recipe_}
    )
    quality = QualityConfig(min_words=0, max_repeated_share=None)  # greedy, the small model loops; its texts count here
    synthesis.run(SynthesisConfig(output=folder, recipe=recipe, quality=quality))
    cluster.disconnect()
    return folder


def stored(groups: Path, output: Path, num: int | None = None) -> GroupStore:
    """The groups' token ids, nothing cut."""
    config = TrainingConfig(output=output, data=(groups,), max_length=8192)
    prepared = Prepared()
    output.mkdir(parents=True, exist_ok=True)
    made = list(tokenized(config, Chat.from_folder(str(models.fetch(MODEL))), prepared))
    assert prepared.truncated_responses == prepared.dropped_groups == 0
    write_groups(output / "groups.arrow", made[:num])
    return GroupStore(output / "groups.arrow")


def side(module: str, arguments: dict[str, Any], log: Path) -> dict[str, Any]:
    """Run ``python -m module`` with JSON arguments in a fresh process; the JSON of its last line."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    command: Sequence[str] = [sys.executable, "-m", module, json.dumps(arguments)]
    with log.open("ab") as sink:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=sink, check=True)
    return dict(json.loads(done.stdout.decode().strip().splitlines()[-1]))
