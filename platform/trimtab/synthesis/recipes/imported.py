"""Import of published preference sets as groups of two, with their flips where asked for; no generation.

The rows of each format are read in ``imported_formats``; here they become ranked groups under a safety
configuration. A bad row is quarantined with its reason, a row that ranks nothing is skipped and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import model_validator

from trimtab.config import Config, InputError, placement
from trimtab.files import Location
from trimtab.safety import DEFAULT_PRESET, PRESETS, SafetyConfig
from trimtab.schemas import CONTENT_CHARS, Quarantined, RankedGroup, Response, make_id, reason_of
from trimtab.sources import read_json_rows, refuse_too_many_bad
from trimtab.synthesis.recipes.derived import check_flips, flips
from trimtab.synthesis.recipes.imported_formats import (
    COLUMNS,
    NEEDED,
    Format,
    NoPreference,
    Preference,
    detect,
    preference,
)


class ImportedRecipe(Config):
    """Rows of a published preference set, each a group of two."""

    type: Literal["imported"] = "imported"
    data: Location = placement()
    """A .json, .jsonl or .parquet file, or its URI; where it lies is no identity, the content's hash is an input."""
    format: Literal["auto", "cst", "pku", "trl"] = "auto"
    """``cst``: ``system, prompt, chosen, rejected`` (+ ``task``); ``pku``: PKU-SafeRLHF; ``trl``: a TRL preference
    set, as text or messages, the prompt given or implicit; ``auto``: the first row's columns say which."""
    configuration: str | None = None
    """The safety configuration of rows that have no system prompt. None: ``harmless`` for ``pku``, where safe is
    better than unsafe, and no system prompt for the other formats."""
    flips: tuple[str, ...] | None = None
    """Configurations under which the groups are ranked in reverse as well (arXiv 2404.00495). None: ``uncensored``
    for ``pku``; no flips for the other formats, which may hold theirs already or not be about safety at all."""
    max_bad_share: float = 0.01
    """The run fails when more than this share of the rows is bad."""

    @model_validator(mode="after")
    def _check(self) -> ImportedRecipe:
        if self.configuration is not None:
            SafetyConfig(preset=self.configuration).render()
        check_flips(self.configuration, self.flips or ())
        return self


@dataclass(frozen=True)
class Imported:
    """What a file gave."""

    format: Format
    groups: list[RankedGroup] = field(default_factory=list)
    """In file order; the flips of a group stand behind it."""
    quarantined: list[Quarantined] = field(default_factory=list)
    """Bad rows, and rows that repeat another."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Sound rows that rank nothing, counted by reason."""


def configuration_of(recipe: ImportedRecipe, form: Format) -> str | None:
    """The configuration of rows without a system prompt: as given, or what the format's ranking means."""
    return recipe.configuration or (DEFAULT_PRESET if form == "pku" else None)


def flips_of(recipe: ImportedRecipe, form: Format) -> tuple[str, ...]:
    """The configurations to flip under: as given, or what the format's ranking allows."""
    if recipe.flips is not None:
        return recipe.flips
    return ("uncensored",) if form == "pku" else ()


def read_groups(recipe: ImportedRecipe) -> tuple[list[RankedGroup], list[Quarantined]]:
    """The groups and the quarantined rows of ``read``."""
    found = read(recipe)
    return found.groups, found.quarantined


def read(recipe: ImportedRecipe) -> Imported:
    """Groups of two in file order, their flips, and what was left out and why.

    A row that repeats another is set aside with the bad ones, but is none: it doesn't count against their share.

    Raises:
        InputError: the file is missing, empty, no JSON, of no known format, or has too many bad rows.
    """
    rows = list(read_json_rows("data", recipe.data))
    form = format_of(rows, recipe)
    configuration = configuration_of(recipe, form)
    groups: dict[str, RankedGroup] = {}
    bad, repeated, skipped = [], [], Counter[str]()
    for number, row in enumerate(rows):
        try:
            group = _to_group(preference(row, form), configuration)
        except NoPreference as reason:
            skipped[str(reason)] += 1
        except ValueError as error:
            bad.append(_quarantined(number, row, reason_of(error)))
        else:
            if groups.setdefault(group.id, group) is not group:
                repeated.append(_quarantined(number, row, "is equal to an earlier row"))
    refuse_too_many_bad("data", recipe.data, bad, len(rows), recipe.max_bad_share)
    if not groups:
        raise _nothing_usable(recipe, form, skipped)
    return Imported(form, _with_flips(groups, flips_of(recipe, form)), [*bad, *repeated], skipped)


def format_of(rows: Sequence[Any], recipe: ImportedRecipe) -> Format:
    """The format given, or that of the first row that has the columns of one.

    Raises:
        InputError: no row has them.
    """
    if recipe.format != "auto":
        return recipe.format
    found = detect(rows)
    if found is None:
        first = next((row for row in rows if isinstance(row, dict)), {})
        problem = f"no row has the columns of a known format (found: {', '.join(sorted(first)) or 'none'})"
        raise InputError("data", recipe.data, problem, f"give rows with the columns of one: {NEEDED}")
    return found


def _nothing_usable(recipe: ImportedRecipe, form: Format, skipped: Counter[str]) -> InputError:
    reasons = "".join(f", {count} times {reason}" for reason, count in skipped.items())
    remedy = f"give rows with {', '.join(COLUMNS[form])}" if not skipped else "give rows with one safe response each"
    return InputError("data", recipe.data, f"has no usable row{reasons}", remedy)


def _quarantined(number: int, row: Any, reason: str) -> Quarantined:
    """Parquet rows may hold values that JSON has no word for, such as dates."""
    return Quarantined(source_row=number, reason=reason, content=json.dumps(row, default=str)[:CONTENT_CHARS])


def _to_group(row: Preference, configuration: str | None) -> RankedGroup:
    system = row.system
    if system is None and configuration is not None:
        system = SafetyConfig(preset=configuration).render()
    return RankedGroup(
        id=_content_id(system, row.prompt, row.chosen, row.rejected), source=make_id("imported-prompt", row.prompt),
        configuration=_preset_of(system) or row.task or "imported", system=system, prompt=row.prompt,
        responses=(Response(role="chosen", text=row.chosen), Response(role="rejected", text=row.rejected)),
    )  # fmt: skip


def _content_id(system: str | None, prompt: str, chosen: str, rejected: str) -> str:
    return make_id("imported", system or "", prompt, chosen, rejected)


def _preset_of(system: str | None) -> str | None:
    """The preset whose rendering a system prompt is, word for word: the published sets name tasks, not settings."""
    plain = (name for name, preset in PRESETS.items() if not preset.takes_persona)
    return next((name for name in plain if SafetyConfig(preset=name).render() == system), None)


def _with_flips(groups: dict[str, RankedGroup], to: Sequence[str]) -> list[RankedGroup]:
    """Each group with its flips behind it, but for flips that the set holds as rows of its own."""
    found = []
    for group in groups.values():
        made = (flip for flip in flips(group, to) if _own_id(flip) not in groups)
        found += [group, *made]
    return found


def _own_id(group: RankedGroup) -> str:
    """The id that a group would have as an imported row."""
    return _content_id(group.system, group.prompt, *(response.text for response in group.responses))
