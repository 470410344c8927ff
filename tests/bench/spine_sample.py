"""What ``make demo`` measures, in a fresh folder: the whole loop on the shipped sample."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench._figures import pipeline_figures, stage_counts
from trimtab import pipeline
from trimtab.config import load
from trimtab.console import quiet
from trimtab.judging import RulesJudge

CONFIG = Path(__file__).parents[2] / "jobs" / "configs" / "demo.yaml"


def run(overrides: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and settings of one run of the pipeline."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as folder:
        output = Path(folder) / "run"
        config = load(pipeline.PipelineConfig, CONFIG, [f"output={output}", *overrides])
        started = time.monotonic()
        with quiet(Path(folder) / "log"):
            pipeline.run(config)
        figures = {"wall_s": round(time.monotonic() - started, 1), **pipeline_figures(output)}
        settings = {"config": config.model_dump(mode="json", exclude={"output", "data"}), "judge": RulesJudge().version,
                    "step_seconds": pipeline.step_seconds(output), "counts": stage_counts(output)}  # fmt: skip
        return figures, settings
