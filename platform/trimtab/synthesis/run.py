"""The synthesis stage: a recipe in, ranked groups out, exactly once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from trimtab import models
from trimtab.artifacts import Outcome, Record, claimed, file_fingerprint, read_record, run_stage
from trimtab.config import InputError
from trimtab.console import say
from trimtab.engine import VLLMEngine
from trimtab.files import AnyPath, at_once
from trimtab.safety import SafetyConfig
from trimtab.schemas import RankedGroup, group_file, group_files, iter_groups, make_id, readable, write_rows
from trimtab.sources import require_file
from trimtab.stores import store_errors_are_input_errors
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.estimate import estimate
from trimtab.synthesis.generating import Synthesis
from trimtab.synthesis.passes import GeneratingRecipe, pass_names
from trimtab.synthesis.recipes import derived, imported, self_critique
from trimtab.synthesis.recipes.derived import FlipRecipe, MixtureRecipe
from trimtab.synthesis.recipes.imported import ImportedRecipe
from trimtab.synthesis.recipes.self_critique import SelfCritiqueRecipe
from trimtab.synthesis.requests import write_quarantined
from trimtab.synthesis.retries import attempts_of, plan_retry, quarantined
from trimtab.synthesis.summary import describe

STAGE = "synthesize"


def run(config: SynthesisConfig, *, retry_quarantined: bool = False) -> Record:
    """Make the groups of a recipe. Running it again goes on, or skips what is done.

    Args:
        retry_quarantined: generate once more what was quarantined for its text or an engine's error.

    Raises:
        InputError: something in the configuration or its inputs can't be used.
    """
    folder, inputs = _inputs(config)
    with store_errors_are_input_errors("output", config.output):
        finished = read_record(config.output) is not None
        if retry_quarantined:
            _refuse_retry(config, finished)
        again = retry_quarantined or (finished and _is_damaged(config.output))

    def work(output: AnyPath) -> Outcome:
        if retry_quarantined and finished:
            _plan_retry(config, output)
        outcome = _made(config, folder, output)
        described = describe(config, output, outcome.counts, inputs)
        return outcome.model_copy(update={"results": outcome.results | described})

    return run_stage(STAGE, config.output, config, inputs, work, again=again)


def plan(config: SynthesisConfig) -> list[str]:
    """Write the plan of a generating recipe and say what it will take; the command without ``--plan`` goes on with it.

    Returns:
        Lines to print.

    Raises:
        InputError: the recipe generates nothing, or something in its inputs can't be used.
    """
    recipe = config.recipe
    if not isinstance(recipe, GeneratingRecipe):
        raise InputError("recipe.type", recipe.type, "generates nothing, so there is nothing to plan", "leave it out")
    folder, inputs = _inputs(config)
    with claimed(STAGE, config.output, config, inputs):
        synthesis = Synthesis(config, recipe, folder, config.output)
        files = synthesis.plan()
    found = estimate(files, folder, config.tokens_per_s or _measured(config))
    bad = quarantined(config.output)
    if not found.num_rows:
        synthesis.refuse_nothing(0, bad)
    counts = ", ".join(f"{value} {name}" for name, value in synthesis.summary.items())
    passes = f"; the first of {len(synthesis.names)} passes" if len(synthesis.names) > 1 else ""
    aside = [f"{len(bad)} rows set aside, with their reasons: {config.output / 'quarantine'}"] if bad else []
    return [f"plan: {config.output / 'plan'}{passes} ({counts})", *aside, *found.lines(2 + len(recipe.flips))]


def preview(config: SynthesisConfig, num_requests: int) -> list[RankedGroup]:
    """Run a few requests to the end in ``<output>-preview`` and give their groups, without flips."""
    recipe = config.recipe
    if not isinstance(recipe, GeneratingRecipe):
        raise InputError("recipe.type", recipe.type, "generates nothing to preview", "leave --preview out")
    few = recipe.model_copy(update={"num_requests": num_requests})
    record = run(config.model_copy(update={"output": preview_folder(config), "recipe": few}))
    groups = (group for group in iter_groups(preview_folder(config)) if group.configuration == recipe.configuration)
    say(f"  measured: {record.results['tokens_per_s'] or 0:.0f} tokens/s; with more requests at a time it is more")
    return list(islice(groups, num_requests))


def preview_folder(config: SynthesisConfig) -> AnyPath:
    """Where a preview of an output is made."""
    return config.output.with_name(f"{config.output.name}-preview")


def _measured(config: SynthesisConfig) -> float | None:
    record = read_record(preview_folder(config))
    return record.results.get("tokens_per_s") if record else None


def _inputs(config: SynthesisConfig) -> tuple[Path | None, dict[str, str]]:
    """The model's folder, where one is needed, and the fingerprints of all inputs."""
    recipe = config.recipe
    for preset in _configurations(config):
        SafetyConfig(preset=preset).render()
    if isinstance(recipe, ImportedRecipe):
        require_file("data", recipe.data)
        return None, {"data": file_fingerprint(recipe.data)}
    if isinstance(recipe, FlipRecipe | MixtureRecipe):
        return None, {name: record.fingerprint for name, record in derived.records(recipe).items()}
    require_file("data", recipe.source.path)
    folder = models.resolve(config.model) if isinstance(config.engine, VLLMEngine) else None
    model = {"model": models.fingerprint(folder)} if folder else {}
    return folder, {"data": file_fingerprint(recipe.source.path)} | model | _texts(recipe)


def _configurations(config: SynthesisConfig) -> tuple[str, ...]:
    recipe = config.recipe
    if isinstance(recipe, GeneratingRecipe):
        return (recipe.configuration, *recipe.flips)
    return ()


def _texts(recipe: GeneratingRecipe) -> dict[str, str]:
    """Fingerprints of the text files that a recipe draws from."""
    if isinstance(recipe, SelfCritiqueRecipe):
        return self_critique.recipe_texts(recipe)
    return {"openers": make_id(*recipe.opener_lines()), "triggers": make_id(*recipe.trigger_lines())}


def _made(config: SynthesisConfig, folder: Path | None, output: AnyPath) -> Outcome:
    recipe = config.recipe
    if isinstance(recipe, GeneratingRecipe):
        return Synthesis(config, recipe, folder, output).run()
    if isinstance(recipe, ImportedRecipe):
        found = imported.read(recipe)
        write_quarantined(output, "source", found.quarantined)
        counts = _write(output, iter(found.groups), config.requests_per_shard)
        bad = {"quarantined": len(found.quarantined), "skipped": found.skipped.total()}
        return Outcome(counts=counts | bad, results={"format": found.format, "skipped": dict(found.skipped)})
    groups = derived.flipped(recipe) if isinstance(recipe, FlipRecipe) else derived.mixed(recipe)
    return Outcome(counts=_write(output, groups, config.requests_per_shard))


def _write(output: AnyPath, groups: Iterator[RankedGroup], per_shard: int) -> dict[str, int]:
    """Write groups as they come, a shard in memory at a time."""
    num_groups = num_pairs = shard = 0
    while some := list(islice(groups, per_shard)):
        num_groups += write_rows(group_file(output, shard), RankedGroup, some)
        num_pairs += sum(group.num_pairs for group in some)
        shard += 1
    return {"groups": num_groups, "pairs": num_pairs}


def _refuse_retry(config: SynthesisConfig, finished: bool) -> None:
    recipe = config.recipe
    if not isinstance(recipe, GeneratingRecipe):
        raise InputError("recipe.type", recipe.type, "generates nothing to retry", "leave --retry-quarantined out")
    if not finished and not attempts_of(config.output, pass_names(recipe)):
        problem = "is not finished, so what it quarantines is not known"
        raise InputError("output", config.output, problem, "run the command without --retry-quarantined first")


def _plan_retry(config: SynthesisConfig, output: AnyPath) -> None:
    assert isinstance(config.recipe, GeneratingRecipe)
    count = plan_retry(output, pass_names(config.recipe), config.retry_temperature)
    others = sum(row.stage != "generation" for row in quarantined(output))
    say(f"  {count} quarantined generations are tried again; {others} other quarantined rows are not the engine's")


def _is_damaged(output: AnyPath) -> bool:
    """Whether a finished output has group files that can't be read any more; they are named, and made again."""
    files = group_files(output)
    broken = [path.name for path, good in zip(files, at_once(readable, files), strict=True) if not good]
    for name in broken:
        say(f"  groups/{name} could not be read; it is made again")
    return bool(broken)
