"""The configuration of ``trimtab synthesize``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trimtab.cluster import RayConfig
from trimtab.config import Config, placement
from trimtab.engine import EngineConfig, VLLMEngine
from trimtab.files import Location
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe
from trimtab.synthesis.recipes.derived import FlipRecipe, MixtureRecipe
from trimtab.synthesis.recipes.imported import ImportedRecipe
from trimtab.synthesis.recipes.self_critique import SelfCritiqueRecipe

Recipe = Annotated[
    CourseCorrectionRecipe | SelfCritiqueRecipe | ImportedRecipe | FlipRecipe | MixtureRecipe,
    Field(discriminator="type"),
]


class SynthesisConfig(Config):
    """``trimtab synthesize``: make ranked groups."""

    output: Location = placement()
    """Folder of the output, or its URI: groups/, quarantine/, data_report.html, record.json."""
    model: str = placement("smollm2-135m")
    """The model that generates: a folder, a registered name@version, a Hub id or the embedded default."""
    recipe: Recipe = CourseCorrectionRecipe()
    quality: QualityConfig = QualityConfig()
    """What a generation must be like; others are quarantined."""
    retry_temperature: float = Field(0.7, ge=0, le=2)
    """Least temperature with which ``--retry-quarantined`` tries again: a greedy answer would only come again."""
    engine: EngineConfig = VLLMEngine()
    requests_per_shard: int = placement(500, ge=1)
    """Requests of one file of the plan and of the groups; an output that has begun keeps its own."""
    tokens_per_s: float | None = placement(None, gt=0)
    """Generated tokens a second of one engine, for the estimate of ``--plan``; none: as measured by ``--preview``."""
    num_judged: int = placement(200, ge=0)
    """Groups of the sample on which the judge compares the ranks, for the data report."""
    ray: RayConfig = placement(RayConfig())
