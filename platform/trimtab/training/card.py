"""The model card: what the model was made from, how, what was measured, and its safety configurations word for word."""

from __future__ import annotations

import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from trimtab.training.config import TrainingConfig

TEMPLATE = "model_card.md.jinja"


def model_card(
    config: TrainingConfig, fingerprint: str, counts: dict[str, int], results: dict[str, Any],
    systems: dict[str, list[str]],
) -> str:  # fmt: skip
    """The card's Markdown; no path of this machine stands in it."""
    loader = PackageLoader("trimtab", "templates")
    template = Environment(loader=loader, undefined=StrictUndefined, autoescape=False).get_template(TEMPLATE)
    kind = "DPO on ranked groups as token tries" if config.objective == "ranked" else "TRL's DPOTrainer on pairs"
    parts = [{"name": part.path.name, **part.identity()} for part in config.parts]
    return template.render(
        name=config.name or "A configurable chat model", base=config.model.rstrip("/").rpartition("/")[2],
        fingerprint=fingerprint, objective=kind, systems=sorted(systems.items()), parts=parts, counts=counts,
        recipe=json.dumps({k: v for k, v in config.identity().items() if k != "data"}, indent=2),
        results=json.dumps(results, indent=2),
    )  # fmt: skip
