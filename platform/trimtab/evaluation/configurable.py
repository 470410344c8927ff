"""S0 and S1: does the model follow its safety configuration? (arXiv 2404.00495, §3).

S1 is the share of safe answers under the harmless prompt, S0 the share of unsafe (uncensored) answers under the
uncensored one; higher is more controllable on both. The same for any other pair of configurations, and in other words
than the trained ones, so that following the sense can be told from knowing one sentence. See ``following``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from trimtab.artifacts import Outcome, Record
from trimtab.chat import ControlGuard
from trimtab.cluster import RayConfig
from trimtab.config import InputError
from trimtab.engine import OpenAIEngine
from trimtab.evaluation.asking import AskingConfig, asked_inputs, asked_requests
from trimtab.evaluation.following import ConfigurationPair, compare, measure, paraphrase_groups
from trimtab.evaluation.several import run_models
from trimtab.evaluation.stage import (
    Made,
    about_judge,
    control_guard,
    give_verdicts,
    run_evaluation,
    with_categories,
)
from trimtab.judging import JudgeConfig, RulesJudge
from trimtab.schemas import Generation, PlanRow, Quarantined, Request, Verdict, make_id, write_rows
from trimtab.stats import EMPTY, Estimate

STAGE = "evaluate configurable"


class ConfigurableConfig(AskingConfig):
    """``trimtab evaluate configurable``: measure S0 and S1."""

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
    refuse_what_does_not_fit(config)
    inputs = asked_inputs(config)
    if config.models:
        return run_models(STAGE, config, inputs, run, partial(differences, config=config))
    requests, bad = asked_requests(config, control_guard(config))
    plan = _plan(requests, config)

    def finish(written: list[Generation], output: Path) -> Outcome:
        verdicts = judge_answers(plan, written, config.judge, config.ray, output)
        verdicts = with_categories(verdicts, requests)
        write_rows(output / "verdicts.parquet", Verdict, verdicts)
        write_rows(output / "quarantine.parquet", Quarantined, bad)
        counts = {"prompts": len(requests), "answers": len(plan),
                  "errors": sum(bool(row.error) for row in written),
                  "unparsed": sum(verdict.verdict == "unparsed" for verdict in verdicts),
                  "judge_errors": sum(bool(verdict.error) for verdict in verdicts),
                  "quarantined": len(bad)}  # fmt: skip
        return Outcome(counts=counts, results=summarize(verdicts, config))

    return run_evaluation(STAGE, config, inputs, plan, finish, made, config.judge)


def refuse_what_does_not_fit(config: ConfigurableConfig) -> None:
    """Settings that exclude one another.

    Raises:
        InputError: naming the one to change.
    """
    if config.paraphrases and isinstance(config.engine, OpenAIEngine) and config.engine.configurations == "safety":
        problem = "an endpoint that takes configurations by name writes their words itself"
        raise InputError("paraphrases", True, problem, "leave them out, or set engine.configurations=system")


def plan_answers(config: ConfigurableConfig, guard: ControlGuard | None = None) -> list[PlanRow]:
    """One greedy answer for each prompt under each configuration, in each of its wordings."""
    return _plan(asked_requests(config, guard)[0], config)


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


def _plan(requests: list[Request], config: ConfigurableConfig) -> list[PlanRow]:
    return [
        PlanRow(id=make_id("answer", request.id, group), request_id=request.id, kind=group, system=system,
                prompt=request.prompt, max_tokens=config.max_tokens)
        for group, system in wordings(config).items() for request in requests
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
