"""Import of a published CST preference set (``system, prompt, chosen, rejected``) as two-response groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from trimtab.config import Config, InputError
from trimtab.safety import PRESETS, SafetyConfig
from trimtab.schemas import Quarantined, RankedGroup, Response, make_id, reason_of
from trimtab.sources import read_json_rows, refuse_too_many_bad

FIELDS = ("system", "prompt", "chosen", "rejected")


class ImportedRecipe(Config):
    """Preference rows with a system prompt each, as published for Configurable Safety Tuning; no generation."""

    type: Literal["imported"] = "imported"
    data: Path
    """A .json, .jsonl or .parquet file with ``system, prompt, chosen, rejected`` (+ ``task``)."""
    max_bad_share: float = 0.01
    """The run fails when more than this share of the rows is bad."""

    def identity(self) -> dict[str, Any]:
        """The path is no identity: the content's hash is an input of the stage."""
        return {name: value for name, value in super().identity().items() if name != "data"}


def read_groups(recipe: ImportedRecipe) -> tuple[list[RankedGroup], list[Quarantined]]:
    """Groups of two, in file order, and the quarantined rows.

    Raises:
        InputError: the file is missing, empty, no JSON, or has too many bad rows.
    """
    groups: dict[str, RankedGroup] = {}
    bad: list[Quarantined] = []
    rows = list(read_json_rows("data", recipe.data))
    for number, row in enumerate(rows):
        try:
            group = _to_group(row)
            if group.id in groups:
                raise ValueError(f"is equal to an earlier row with prompt {group.prompt[:40]!r}")
            groups[group.id] = group
        except ValueError as error:
            reason = reason_of(error)
            bad.append(Quarantined(source_row=number, reason=reason, content=json.dumps(row)[:500]))
    refuse_too_many_bad("data", recipe.data, bad, len(rows), recipe.max_bad_share)
    if not groups:
        raise InputError("data", recipe.data, "has no usable row", f"give rows with {', '.join(FIELDS)}")
    return list(groups.values()), bad


def _to_group(row: Any) -> RankedGroup:
    if not isinstance(row, dict):
        raise ValueError("is not a JSON object")
    for field in FIELDS:
        if not isinstance(row.get(field), str):
            raise ValueError(f"field {field} is missing or not text")
    system, prompt, chosen, rejected = (row[field].strip() for field in FIELDS)
    return RankedGroup(
        id=make_id("imported", system, prompt, chosen, rejected), source=make_id("imported-prompt", prompt),
        configuration=_preset_of(system) or str(row.get("task") or "imported"), system=system or None, prompt=prompt,
        responses=(Response(role="chosen", text=chosen), Response(role="rejected", text=rejected)),
    )  # fmt: skip


def _preset_of(system: str) -> str | None:
    """The preset whose rendering a system prompt is, word for word: the published sets name tasks, not settings."""
    plain = (name for name, preset in PRESETS.items() if not preset.takes_persona)
    return next((name for name in plain if SafetyConfig(preset=name).render() == system), None)
