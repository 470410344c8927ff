"""Does it learn as well? The trie on whole groups against TRL on the same pairs, shuffled, over three seeds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.bench._training import MODEL, synthesized
from trimtab import cluster, models
from trimtab.artifacts import Record
from trimtab.console import quiet, say
from trimtab.evaluation import prefill
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.judging import RulesJudge
from trimtab.sources import SourceConfig
from trimtab.training import run as training
from trimtab.training.config import TrainingConfig, ValidationConfig

SEEDS = (0, 1, 2)
SOURCE = SourceConfig()
"""The sample: each of its rows has a safe response. Few published ones have, and the small model's own answers are so
seldom safe that training on them as the best response teaches compliance."""
OBJECTIVES = ("ranked", "pairwise")
NUM_GROUPS = 12
MAX_TOKENS = 48  # new tokens of a synthesized response: shorter than the paper's, so that three seeds of TRL fit
SETTINGS: dict[str, Any] = {
    "learning_rate": 2e-4, "groups_per_step": 1, "max_length": 8192, "report_to": (),
    "validation": ValidationConfig(share=0.25), "save_steps": 1000,
}  # fmt: skip


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Corr_mean and validation accuracy of each objective and seed, and the differences with their intervals."""
    with tempfile.TemporaryDirectory(prefix="trimtab-bench-") as scratch, quiet(Path(scratch) / "log"):
        folder = Path(scratch)
        groups = make_groups(folder / "groups")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in OBJECTIVES}
        base = corr_of(models.fetch(MODEL), folder / "base")
        for seed in SEEDS:
            for objective in OBJECTIVES:
                measured = one(folder / f"{objective}-{seed}", groups, seed, objective=objective)
                found[objective].append(measured)
                say(f"  {objective}, seed {seed}: {measured}")
        compared = {
            seed: prefill.compare(folder / f"pairwise-{seed}" / "corr", folder / f"ranked-{seed}" / "corr").model_dump()
            for seed in SEEDS
        }
    figures: dict[str, Any] = {"corr_mean_base": base.results["corr_mean"]["value"]}
    for name in ("corr_mean", "validation_accuracy", "validation_loss", "train_seconds"):
        for objective in OBJECTIVES:
            figures[f"{name}_{objective}"] = [measured[name] for measured in found[objective]]
    for name in ("corr_mean", "validation_accuracy"):
        figures[f"{name}_difference"] = _difference(found, name)
    return figures, described() | {"seeds": SEEDS, "per_seed_corr_difference": compared}


def make_groups(output: Path) -> Path:
    """The groups that all sides train on."""
    return synthesized(output, NUM_GROUPS, source=SOURCE, safe_response="source", max_tokens=MAX_TOKENS)


def described() -> dict[str, Any]:
    """The settings that all sides share."""
    return {"model": MODEL, "data": "shipped sample, its safe responses as SR", "groups": NUM_GROUPS,
            "synthesis_max_tokens": MAX_TOKENS, "judge": RulesJudge().version,
            "training": {name: str(value) for name, value in SETTINGS.items()}}  # fmt: skip


def one(output: Path, groups: Path, seed: int, **more: Any) -> dict[str, float]:
    """Train and measure once: Corr_mean, validation accuracy and loss, seconds of the steps."""
    config = TrainingConfig.model_validate(
        {"output": output / "train", "data": (groups,), "seed": seed, **SETTINGS, **more}
    )
    record = training.run(config)
    corr = corr_of(output / "train" / "model", output / "corr")
    validation = record.results["validation"]
    return {"corr_mean": corr.results["corr_mean"]["value"], "validation_accuracy": validation["eval_accuracy"],
            "validation_loss": validation["eval_dpo_loss"], "train_seconds": record.timings_s["steps"]}  # fmt: skip


def corr_of(model: Path, output: Path) -> Record:
    """Corr_mean of a model on the sample's held-out prompts."""
    record = prefill.run(PrefillConfig(output=output, model=str(model), source=SOURCE))
    cluster.disconnect()
    return record


def _difference(found: dict[str, list[dict[str, float]]], name: str) -> dict[str, Any]:
    """Mean over seeds of ranked minus pairwise, with a t interval: three seeds, so a wide one."""
    from scipy.stats import ttest_1samp

    differences = [r[name] - p[name] for r, p in zip(found["ranked"], found["pairwise"], strict=True)]
    interval = ttest_1samp(differences, 0).confidence_interval()
    mean = sum(differences) / len(differences)
    return {"values": differences, "mean": mean, "low": float(interval.low), "high": float(interval.high)}
