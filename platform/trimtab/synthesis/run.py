"""The synthesis stage: requests → plan → generations → ranked groups and their flips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from trimtab import cluster, models
from trimtab.artifacts import Outcome, Record, file_fingerprint, run_stage
from trimtab.chat import Chat
from trimtab.cluster import RayConfig
from trimtab.config import Config, InputError, placement
from trimtab.console import say
from trimtab.engine import EngineConfig, VLLMEngine, generate
from trimtab.safety import SafetyConfig
from trimtab.schemas import Generation, Quarantined, RankedGroup, Request, group_file, reason_of, write_rows
from trimtab.sources import read_requests, refuse_too_many_bad, split_requests
from trimtab.synthesis.imported import ImportedRecipe, read_groups
from trimtab.synthesis.recipe import CourseCorrectionRecipe, Draft, build_group, draft, generation_id, keep, plan_rows

STAGE = "synthesize"


class SynthesisConfig(Config):
    """``trimtab synthesize``: make ranked groups."""

    output: Path = placement()
    """Folder of the output: groups/, quarantined.parquet, record.json."""
    model: str = placement("smollm2-135m")
    """The model that generates: a folder, a Hub id or the embedded default."""
    recipe: Annotated[CourseCorrectionRecipe | ImportedRecipe, Field(discriminator="type")] = CourseCorrectionRecipe()
    engine: EngineConfig = VLLMEngine()
    ray: RayConfig = placement(RayConfig())


def run(config: SynthesisConfig) -> Record:
    """Make the groups of a recipe. Running it again goes on, or skips what is done.

    Raises:
        InputError: something in the configuration or its inputs can't be used.
    """
    if isinstance(config.recipe, ImportedRecipe):
        return _run_import(config, config.recipe)
    recipe = config.recipe
    for preset in (recipe.configuration, *recipe.flips):
        SafetyConfig(preset=preset).render()
    folder = models.resolve(config.model) if isinstance(config.engine, VLLMEngine) else None
    requests, bad = read_requests(recipe.source)
    training, _ = split_requests(requests, recipe.source)
    inputs = {"data": file_fingerprint(recipe.source.path), **_recipe_texts(recipe)}
    inputs |= {"model": models.fingerprint(folder)} if folder else {}

    def work(output: Path) -> Outcome:
        return _synthesize(config, recipe, folder, training, bad, output)

    return run_stage(STAGE, config.output, config, inputs, work)


def _recipe_texts(recipe: CourseCorrectionRecipe) -> dict[str, str]:
    from trimtab.schemas import make_id

    return {"openers": make_id(*recipe.opener_lines()), "triggers": make_id(*recipe.trigger_lines())}


def _run_import(config: SynthesisConfig, recipe: ImportedRecipe) -> Record:
    groups, bad = read_groups(recipe)

    def work(output: Path) -> Outcome:
        counts = _write(output, groups, bad)
        return Outcome(counts=counts)

    return run_stage(STAGE, config.output, config, {"data": file_fingerprint(recipe.data)}, work)


def _synthesize(
    config: SynthesisConfig, recipe: CourseCorrectionRecipe, model: Path | None, training: list[Request],
    bad: list[Quarantined], output: Path,
) -> Outcome:  # fmt: skip
    kept = [request for request in training if keep(request, recipe)][: recipe.num_requests]
    drafts, rejected = _drafts(kept, recipe, Chat.from_folder(str(model)) if model else None)
    if not drafts:
        raise InputError("data", recipe.source.path, f"none of {len(training)} training requests passes the filter",
                         f"lower recipe.min_words ({recipe.min_words}) or give longer responses")  # fmt: skip
    plan = [row for item in drafts for row in plan_rows(item, recipe)]
    say(f"  {len(drafts)} of {len(training)} training requests -> {len(plan)} generations")
    cluster.connect(config.ray)
    made = {row.id: row for row in generate(plan, output, model, config.engine, "generations")}
    groups, failed = _groups(drafts, made, recipe)
    refuse_too_many_bad("generations", output, failed, len(drafts), 0.5)
    flips = [g.flip(preset, SafetyConfig(preset=preset).render()) for preset in recipe.flips for g in groups]
    counts = _write(output, [*groups, *flips], [*bad, *rejected, *failed])
    tokens = sum(row.num_tokens for row in made.values())
    return Outcome(counts={**counts, "requests": len(drafts), "generations": len(plan), "generated_tokens": tokens})


def _drafts(
    requests: list[Request], recipe: CourseCorrectionRecipe, chat: Chat | None
) -> tuple[list[Draft], list[Quarantined]]:
    """Requests made ready, and those that can't be: too few cuts, or a control token in the text."""
    ready, bad = [], []
    for request in requests:
        try:
            if chat:
                chat.refuse_control_tokens("prompt", request.prompt)
                chat.refuse_control_tokens("response", request.harmful)
            ready.append(draft(request, recipe))
        except ValueError as error:
            bad.append(_quarantine(request, error))
    return ready, bad


def _groups(
    drafts: list[Draft], made: dict[str, Generation], recipe: CourseCorrectionRecipe
) -> tuple[list[RankedGroup], list[Quarantined]]:
    groups, bad = [], []
    kinds = ("SR", *(f"SYN_{i}" for i in range(1, recipe.num_cuts + 1)))
    for item in drafts:
        ids = {kind: generation_id(item.request, kind, recipe) for kind in kinds}
        try:
            own = {kind: made[row_id] for kind, row_id in ids.items() if row_id in made}
            groups.append(build_group(item, own, recipe))
        except ValueError as error:
            bad.append(_quarantine(item.request, error))
    return groups, bad


def _quarantine(request: Request, error: ValueError) -> Quarantined:
    return Quarantined(source_row=request.source_row, reason=reason_of(error), content=request.prompt[:500])


def _write(output: Path, groups: list[RankedGroup], bad: list[Quarantined]) -> dict[str, int]:
    num_pairs = sum(len(group.responses) * (len(group.responses) - 1) // 2 for group in groups)
    write_rows(group_file(output), RankedGroup, groups)
    if bad:
        write_rows(output / "quarantined.parquet", Quarantined, bad)
        say(f"  {len(bad)} rows quarantined, with their reasons: {output / 'quarantined.parquet'}")
    say(f"  {len(groups)} ranked groups = {num_pairs} preference pairs")
    return {"groups": len(groups), "pairs": num_pairs, "quarantined": len(bad)}
