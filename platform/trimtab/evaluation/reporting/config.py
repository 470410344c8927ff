"""What a report is made of: outputs by model, or simply outputs, whose records say which model they measured."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from trimtab.config import Config, placement
from trimtab.evaluation import ability, configurable, injection, prefill, retention, robustness
from trimtab.files import LocalPath, Location

EVALUATIONS = {
    "prefill": prefill.STAGE, "configurable": configurable.STAGE, "injection": injection.STAGE,
    "robustness": robustness.STAGE, "retention": retention.STAGE, "ability": ability.STAGE,
}  # fmt: skip
"""Field of ``ReportedModel`` -> the stage that makes it."""
MAX_NAME_CHARS = 60


class ReportedModel(Config):
    """A model of the report and where its evaluations lie; one that was not made stays out."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS)
    """The name shown, such as ``base``."""
    prefill: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate prefill``."""
    configurable: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate configurable``."""
    injection: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate injection``."""
    robustness: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate robustness``."""
    retention: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate retention``."""
    ability: LocalPath | None = placement(None)
    """Output of ``trimtab evaluate ability``."""


class ReportConfig(Config):
    """``trimtab report``: write the report."""

    output: LocalPath = placement(Path("runs/report"))
    """Folder of the output: report.html, report.md, model_card.md, report.json, pictures, record.json."""
    runs: tuple[str, ...] = placement(())
    """Outputs of evaluations, or folders that hold some, each a FOLDER or NAME=FOLDER; instead of ``models``. The
    records say which model each measured; outputs of a training, a synthesis or a judge's calibration may be among
    them. The first model is the baseline."""
    models: tuple[ReportedModel, ...] = ()
    """The models; the first is the baseline that the others are compared with."""
    calibrations: tuple[LocalPath, ...] = placement(())
    """Outputs of ``trimtab evaluate judge``: what is known of the judges."""
    training: LocalPath | None = placement(None)
    """Output of ``trimtab train``: adds its loss and margin."""
    synthesis: Location | None = placement(None)
    """Output of ``trimtab synthesize``, a folder or its URI: adds its settings and counts."""
    title: str = "trimtab report"

    @model_validator(mode="after")
    def _check(self) -> ReportConfig:
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError(f"names must differ, these are {', '.join(names)}; rename one")
        return self
