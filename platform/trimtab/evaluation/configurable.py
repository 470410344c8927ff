"""S0 and S1: does the model follow its safety configuration? (arXiv 2404.00495, §3).

S1 is the share of safe answers under the harmless prompt, S0 the share of unsafe (uncensored) answers under the
uncensored one; higher is more controllable on both. The same for any other pair of configurations, and in other words
than the trained ones, so that following the sense can be told from knowing one sentence. See ``following``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field

from trimtab.artifacts import Outcome, Record, file_fingerprint
from trimtab.chat import ControlGuard
from trimtab.cluster import RayConfig
from trimtab.config import InputError, placement
from trimtab.evaluation.following import ConfigurationPair, compare, measure, paraphrase_groups
from trimtab.evaluation.prompts import read_categories
from trimtab.evaluation.several import ModelsConfig, run_models
from trimtab.evaluation.stage import (
    Made,
    about_judge,
    control_guard,
    give_verdicts,
    held_out,
    run_evaluation,
    with_categories,
)
from trimtab.files import Location
from trimtab.judging import JudgeConfig, RulesJudge
from trimtab.schemas import Generation, PlanRow, Quarantined, Verdict, make_id, write_rows
from trimtab.sources import SourceConfig, require_file
from trimtab.stats import EMPTY, Estimate

STAGE = "evaluate configurable"


class ConfigurableConfig(ModelsConfig):
    """``trimtab evaluate configurable``: measure S0 and S1."""

    source: SourceConfig = SourceConfig()
    """Requests; only the evaluation split's prompts are asked."""
    prompts: Location | None = placement(None)
    """A file of prompts to ask instead, or its URI: rows with a ``prompt``, or a text file with one a line."""
    pairs: tuple[ConfigurationPair, ...] = Field((ConfigurationPair(),), min_length=1)
    """The configurations to measure against one another; the first pair's S0 and S1 are the headline."""
    paraphrases: bool = False
    """Ask in other words of each system prompt too, which no model is trained on."""
    max_tokens: int = Field(64, ge=1)
    """New tokens of an answer; answers are greedy."""
    judge: JudgeConfig = RulesJudge()


def run(config: ConfigurableConfig, made: Made | None = None) -> Record:
    """Measure S0 and S1. Running it again goes on, or skips what is done.

    Args:
        made: generations that a caller has for these rows already (see ``suite``); none: the engine's.

    Returns:
        A record whose ``results`` hold the Estimates ``s0``, ``s1`` and ``s0_plus_s1`` of the first pair, and all that
        is known of each under ``pairs``; with ``models``, those of each model and the differences from the first.
    """
    field, asked = ("prompts", config.prompts) if config.prompts else ("data", config.source.path)
    require_file(field, asked)
    inputs = {field: file_fingerprint(asked, field)}
    if config.models:
        return run_models(STAGE, config, inputs, run, partial(differences, config=config))
    found = asked_prompts(config, control_guard(config))
    plan = _plan(found.prompts, config)

    def finish(written: list[Generation], output: Path) -> Outcome:
        verdicts = judge_answers(plan, written, config.judge, config.ray, output)
        verdicts = with_categories(verdicts, found.categories)
        write_rows(output / "verdicts.parquet", Verdict, verdicts)
        write_rows(output / "quarantine.parquet", Quarantined, found.bad)
        counts = {"prompts": len(found.prompts), "answers": len(plan),
                  "errors": sum(bool(row.error) for row in written),
                  "unparsed": sum(verdict.verdict == "unparsed" for verdict in verdicts),
                  "judge_errors": sum(bool(verdict.error) for verdict in verdicts),
                  "quarantined": len(found.bad)}  # fmt: skip
        return Outcome(counts=counts, results=summarize(verdicts, config))

    return run_evaluation(STAGE, config, inputs, plan, finish, made)


def plan_answers(config: ConfigurableConfig, guard: ControlGuard | None = None) -> list[PlanRow]:
    """One greedy answer for each prompt under each configuration, in each of its wordings."""
    return _plan(asked_prompts(config, guard).prompts, config)


class Asked(NamedTuple):
    """The prompts and their categories by id, and what can't be asked."""

    prompts: dict[str, str]
    categories: dict[str, str | None]
    bad: list[Quarantined]


def asked_prompts(config: ConfigurableConfig, guard: ControlGuard | None = None) -> Asked:
    """The prompts of the file, or of the source's evaluation split.

    Args:
        guard: of the model; prompts that hold its control tokens are set aside.
    """
    if config.prompts:
        found, bad = read_categories("prompts", config.prompts, config.source.max_bad_share, guard)
        ids = {prompt: make_id("prompt", prompt) for prompt in found}
        return Asked({ids[prompt]: prompt for prompt in found}, {ids[p]: kind for p, kind in found.items()}, bad)
    requests, bad = held_out(config.source, guard)
    return Asked({row.id: row.prompt for row in requests}, {row.id: row.category for row in requests}, bad)


def wordings(config: ConfigurableConfig) -> dict[str, str]:
    """The system prompts to ask under, by the group of their answers; a configuration of two pairs stands once.

    Raises:
        InputError: a pair's two sides are the same, or one can't be rendered.
    """
    for number, pair in enumerate(config.pairs):
        if pair.s0 == pair.s1:
            raise InputError(f"pairs.{number}", pair.name, "both sides are the same", "give two configurations")
    sides = [side for pair in config.pairs for side in (pair.s0, pair.s1)]
    found = {side.label: side.render() for side in sides}
    return found | {group: text for side in sides for group, text in paraphrase_groups(side).items()
                    if config.paraphrases}  # fmt: skip


def _plan(prompts: dict[str, str], config: ConfigurableConfig) -> list[PlanRow]:
    return [
        PlanRow(id=make_id("answer", prompt_id, group), request_id=prompt_id, kind=group, system=system, prompt=prompt,
                max_tokens=config.max_tokens)
        for group, system in wordings(config).items() for prompt_id, prompt in prompts.items()
    ]  # fmt: skip


def judge_answers(
    plan: list[PlanRow], made: list[Generation], judge: JudgeConfig, ray: RayConfig | None = None,
    output: Path | None = None,
) -> list[Verdict]:  # fmt: skip
    """A verdict for each answer, ``yes`` = safe; one whose generation failed is unparsed."""
    drafts = [
        Verdict(id=row.id, request_id=row.request_id, group=row.kind, prompt=row.prompt, text=written.text,
                verdict="unparsed")
        for row, written in zip(plan, made, strict=True)
    ]  # fmt: skip
    return give_verdicts(drafts, made, "is_safe", judge, ray, output)


def summarize(verdicts: list[Verdict], config: ConfigurableConfig) -> dict[str, Any]:
    """What each pair shows, and the first pair's S0, S1 and their sum on top."""
    pairs = [measure(verdicts, pair) for pair in config.pairs]
    first = {name: pairs[0].get(name, EMPTY.model_dump()) for name in ("s0", "s1", "s0_plus_s1")}
    return {**first, "pair": pairs[0]["pair"], "pairs": pairs, **about_judge(config.judge, "is_safe")}


def differences(before: Path, after: Path, config: ConfigurableConfig) -> dict[str, Estimate]:
    """What each pair shows of two models (after − before), by the row of ``tables`` that it belongs to."""
    return {difference_label(pair): compare(before, after, pair) for pair in config.pairs}


def difference_label(pair: ConfigurationPair) -> str:
    """What is compared between two models for a pair."""
    return f"{'S0 + S1' if pair.opposed else 'answers differ'}, {pair.name}"
