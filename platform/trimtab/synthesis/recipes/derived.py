"""Groups made from groups, without any generation: flips (arXiv 2404.00495) and weighted mixtures.

Inputs are outputs of ``trimtab synthesize``. Identity is the recipe and the fingerprints of the inputs'
records; their paths are none. Groups are streamed: what a recipe holds of all of them is ids and prompts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from trimtab.artifacts import Record, require_record
from trimtab.config import Config, InputError, placement
from trimtab.files import AnyPath, Location, arrow_paths
from trimtab.safety import DEFAULT_PRESET, SafetyConfig
from trimtab.schemas import SCHEMAS, RankedGroup, group_files, iter_groups, make_id

PROMPTS_AT_A_TIME = 4096
"""Prompts of a mixture whose groups are in memory together; each such part is one more pass over the inputs."""


class FlipRecipe(Config):
    """The groups of one safety configuration, ranked in reverse under others."""

    type: Literal["flip"] = "flip"
    groups: Location = placement()
    """Output of ``trimtab synthesize``, a folder or its URI."""
    configuration: str = DEFAULT_PRESET
    """The configuration whose groups are taken; those of others are left out."""
    to: tuple[str, ...] = Field(("uncensored",), min_length=1)
    """Presets under which the same responses are ranked in reverse; none that takes a persona."""
    keep: bool = True
    """Write the groups that are taken as well, each before its flips."""

    @model_validator(mode="after")
    def _check(self) -> FlipRecipe:
        check_flips(self.configuration, self.to)
        return self


class MixturePart(Config):
    """One part of a mixture."""

    path: Location = placement()
    """Output of ``trimtab synthesize``, a folder or its URI."""
    weight: float = Field(1.0, gt=0, le=1000, allow_inf_nan=False)
    """Times that each group is written: 0.5 is a seeded half of the part's prompts, 2 each group twice."""
    configurations: tuple[str, ...] | None = Field(None, min_length=1)
    """Only groups of these safety configurations; none: all."""
    name: str | None = placement(None)
    """What messages call the part; none: its path."""

    @property
    def label(self) -> str:
        """What messages call the part."""
        return self.name or str(self.path)


class MixtureRecipe(Config):
    """A multi-task mixture of groups, with weights, in a seeded order of prompts."""

    type: Literal["mixture"] = "mixture"
    parts: tuple[MixturePart, ...] = Field(min_length=1)
    """What is mixed; the groups of one prompt stand together, in the order of the parts."""
    seed: int = 0
    """Seed of the order, and of the prompts that a weight which isn't whole draws."""


def check_flips(configuration: str | None, to: Sequence[str]) -> None:
    """Check the configurations that groups of ``configuration`` are to be flipped under.

    Raises:
        ValueError: one is no preset without a persona, is named twice, or is the groups' own.
    """
    for preset in to:
        SafetyConfig(preset=preset).render()
    if len(set(to)) < len(to):
        raise ValueError(f"{', '.join(to)}: one is named twice; name each once")
    if configuration in to:
        problem = "groups of it would be ranked both ways under one system prompt"
        raise ValueError(f"{configuration}: {problem}; flip them under another configuration")


def flips(group: RankedGroup, to: Iterable[str]) -> Iterator[RankedGroup]:
    """The flips of a group, one for each preset; none under the system prompt that it has already."""
    for preset in to:
        system = SafetyConfig(preset=preset).render()
        if system != group.system:
            yield group.flip(preset, system)


def records(recipe: FlipRecipe | MixtureRecipe) -> dict[str, Record]:
    """The records of the inputs, by field: their fingerprints are inputs of the stage.

    Raises:
        InputError: an input is missing, unfinished or made by another stage.
    """
    if isinstance(recipe, FlipRecipe):
        return {"groups": require_record("groups", recipe.groups, "synthesize")}
    fields = {f"parts.{number}": part.path for number, part in enumerate(recipe.parts)}
    return {name: require_record(f"{name}.path", path, "synthesize") for name, path in fields.items()}


def flipped(recipe: FlipRecipe) -> Iterator[RankedGroup]:
    """The flips of the groups of one configuration, in file order, a group before its flips where it is kept.

    Raises:
        InputError: the input is missing or unfinished, or has no group of the configuration.
    """
    records(recipe)
    _require_configurations("configuration", recipe.groups, [recipe.configuration], _columns("groups", recipe.groups))
    return _flipped(recipe)


def _flipped(recipe: FlipRecipe) -> Iterator[RankedGroup]:
    for group in iter_groups(recipe.groups):
        if group.configuration == recipe.configuration:
            yield from (group,) if recipe.keep else ()
            yield from flips(group, recipe.to)


def _columns(field: str, path: AnyPath) -> Any:
    """Ids, prompts and configurations of all groups of an input, as an Arrow table."""
    if not group_files(path):
        raise InputError(field, path, "holds no groups", "give an output of trimtab synthesize that has some")
    return _scan(path, ["id", "prompt", "configuration"])


def _scan(path: AnyPath, columns: list[str], condition: Any = None) -> Any:
    import pyarrow.dataset as pads

    filesystem, files = arrow_paths(group_files(path))
    groups = pads.dataset(files, schema=SCHEMAS[RankedGroup], filesystem=filesystem)
    return groups.to_table(columns=columns, filter=condition)


def _require_configurations(field: str, path: AnyPath, wanted: Sequence[str], columns: Any) -> None:
    there = sorted(columns["configuration"].unique().to_pylist())
    for name in wanted:
        if name not in there:
            remedy = f"use one of {', '.join(there)}" if there else "give an output that has groups"
            raise InputError(field, name, f"no group of {path} stands under it", remedy)


@dataclass(frozen=True)
class _Drawn:
    """A part, and how often the groups of each of its prompts are written."""

    part: MixturePart
    copies: dict[str, int]


def mixed(recipe: MixtureRecipe) -> Iterator[RankedGroup]:
    """The groups of a mixture; a prompt's groups stand together, and prompts in a seeded order.

    A repeated group gets an id of its own.

    Raises:
        InputError: a part is missing or unfinished, has no group of a configuration, or draws no prompt at all;
            or a group stands in two parts.
    """
    records(recipe)
    owners: dict[str, str] = {}
    drawn = []
    for number, part in enumerate(recipe.parts):
        prompts = _prompts(f"parts.{number}", part, owners)
        copies = draw_copies(prompts, part.weight, make_id(recipe.seed, "draw", number))
        if not copies:
            problem = f"draws none of the {len(prompts)} prompts of {part.label}"
            raise InputError(f"parts.{number}.weight", part.weight, problem, "raise it or leave the part out")
        drawn.append(_Drawn(part, copies))
    return _mixed(drawn, _shuffled({prompt for item in drawn for prompt in item.copies}, recipe.seed), set(owners))


def _prompts(field: str, part: MixturePart, owners: dict[str, str]) -> set[str]:
    """The prompts of the groups that a part gives; notes in ``owners`` whose each group is."""
    columns = _columns(f"{field}.path", part.path)
    _require_configurations(f"{field}.configurations", part.path, part.configurations or (), columns)
    prompts, where = set(), f"{field} ({part.label})"
    for row in (row for batch in columns.to_batches() for row in batch.to_pylist()):
        if part.configurations is not None and row["configuration"] not in part.configurations:
            continue
        if row["id"] in owners:
            problem = f"its group {row['id']} is in {owners[row['id']]} too"
            remedy = "leave one of the parts out, or keep them apart by configurations (a weight of 2 repeats a part)"
            raise InputError(field, part.label, problem, remedy)
        owners[row["id"]] = where
        prompts.add(row["prompt"])
    return prompts


def draw_copies(prompts: Collection[str], weight: float, salt: str) -> dict[str, int]:
    """How often each prompt is written: the whole part of ``weight`` for all, once more for a seeded share of them.

    The share is exact up to rounding; prompts that are not written are left out.
    """
    whole = math.floor(weight)
    num_more = math.floor((weight - whole) * len(prompts) + 0.5)
    order = _shuffled(prompts, salt)
    counts = {prompt: whole + (place < num_more) for place, prompt in enumerate(order)}
    return {prompt: count for prompt, count in counts.items() if count}


def _shuffled(prompts: Iterable[str], salt: object) -> list[str]:
    """A seeded order that depends on the prompts alone, not on how they were found."""
    return sorted(prompts, key=lambda prompt: make_id(salt, prompt))


def _mixed(drawn: list[_Drawn], order: list[str], taken: set[str]) -> Iterator[RankedGroup]:
    for start in range(0, len(order), PROMPTS_AT_A_TIME):
        groups: dict[str, list[RankedGroup]] = {prompt: [] for prompt in order[start : start + PROMPTS_AT_A_TIME]}
        for item in drawn:
            wanted = [prompt for prompt in groups if prompt in item.copies]
            for prompt, found in _read(item.part, wanted).items():
                groups[prompt] += _repeated(found, item.copies[prompt], taken)
        for found in groups.values():
            yield from found


def _read(part: MixturePart, prompts: list[str]) -> dict[str, list[RankedGroup]]:
    """The groups of some prompts, in file order."""
    import pyarrow.dataset as pads

    found: dict[str, list[RankedGroup]] = {}
    condition = pads.field("prompt").isin(prompts)
    if part.configurations is not None:
        condition &= pads.field("configuration").isin(part.configurations)
    for row in _scan(part.path, SCHEMAS[RankedGroup].names, condition).to_pylist():
        group = RankedGroup.model_validate(row)
        found.setdefault(group.prompt, []).append(group)
    return found


def _repeated(groups: Sequence[RankedGroup], times: int, taken: set[str]) -> Iterator[RankedGroup]:
    """The groups, then their copies round by round, so that a group and its flip stay side by side."""
    yield from groups
    for number in range(1, times):
        for group in groups:
            yield group.model_copy(update={"id": _copy_id(group.id, number, taken)})


def _copy_id(group_id: str, number: int, taken: set[str]) -> str:
    """An id of its own: a part that is a mixture may hold copies already, whose ids are taken."""
    made = make_id(group_id, "copy", number)
    while made in taken:
        made = make_id(made, "copy", number)
    taken.add(made)
    return made
