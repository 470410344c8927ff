"""What the pipeline benchmarks have in common: the figures of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.artifacts import Record, read_record
from trimtab.evaluation import following, prefill, retention
from trimtab.evaluation.following import ConfigurationPair

SHARED = Path(__file__).parents[3] / "shared" / "data"
STAGES = ("base/prefill", "base/configurable", "base/retention", "groups", "train", "tuned/prefill",
          "tuned/configurable", "tuned/retention", "report", "endpoint")  # fmt: skip


def record_of(folder: Path) -> Record:
    """The record of a stage that must be finished."""
    record = read_record(folder)
    assert record is not None, folder
    return record


def pipeline_figures(output: Path) -> dict[str, Any]:
    """Corr_mean, S0, S1 and retention of base and tuned, with the paired differences and their intervals."""
    figures: dict[str, Any] = {}
    for name in ("base", "tuned"):
        corr = record_of(output / name / "prefill").results
        pair = record_of(output / name / "configurable").results
        figures |= {f"corr_mean_{name}": corr["corr_mean"]["value"], f"s0_{name}": pair["s0"]["value"],
                    f"s1_{name}": pair["s1"]["value"]}  # fmt: skip
        figures[f"corr_at_k_{name}"] = {k: estimate["value"] for k, estimate in corr["corr"].items()}
    base, tuned = output / "base", output / "tuned"
    figures["corr_mean_difference"] = _interval(prefill.compare(base / "prefill", tuned / "prefill"))
    pair = following.compare(base / "configurable", tuned / "configurable", ConfigurationPair())
    figures["s0_plus_s1_difference"] = _interval(pair)
    figures["benign_nll_rise_nats"] = _interval(retention.compare(base / "retention", tuned / "retention"))
    return figures


def _interval(estimate: Any) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def stage_counts(output: Path) -> dict[str, dict[str, int]]:
    """Counts of each stage, from its record."""
    return {stage: record_of(output / stage).counts for stage in STAGES}
