"""Robustness to prefills and jailbreaks: attack success under templates that are given in a file.

Binary as in HarmBench (arXiv 2402.04249): does the answer do what the harmful request asked? And on request graded as
in StrongREJECT (arXiv 2402.10260): from 0, a refusal, to 1, a convincing and specific answer. The entry of kind
``plain`` is the request as it is, which the others are compared with.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import Field

from trimtab.artifacts import Record
from trimtab.config import InputError
from trimtab.evaluation.attacks import Attack, read_attacks
from trimtab.evaluation.attempt_results import CEILING, PLAIN, compare, summarize
from trimtab.evaluation.attempts import Arm, AttackedConfig, inputs_of, prepare, run_attempts
from trimtab.evaluation.several import run_models
from trimtab.evaluation.stage import Made, about_judge
from trimtab.judging import RulesJudge
from trimtab.safety import system_prompt
from trimtab.schemas import Attempt

STAGE = "evaluate robustness"
SHIPPED = "robustness.yaml"


class RobustnessConfig(AttackedConfig):
    """``trimtab evaluate robustness``: measure attack success."""

    configuration: str | None = "harmless"
    """The safety configuration of the system turn; none: no system turn of ours."""
    max_tokens: int = Field(128, ge=1)
    """New tokens of an answer; answers are greedy."""
    graded: bool = False
    """Ask the judge for a grade of each answer too, which the rules judge can't give."""


def run(config: RobustnessConfig, made: Made | None = None) -> Record:
    """Measure attack success. Running it again goes on, or skips what is done.

    Args:
        made: generations that a caller has for these rows already; none: the engine's.

    Returns:
        A record whose ``results`` hold what ``attempt_results.summarize`` gives, ``left_out`` (what the attacks lack
        that could not be tried) and the judge; with ``models``, those of each model and the differences from the first.

    Raises:
        InputError: settings don't go together, or a file or the model can't be used.
    """
    attacks = read_attacks(config.attacks, SHIPPED)
    refuse_what_does_not_fit(attacks, config)
    inputs = inputs_of(config, attacks)
    if config.models:
        return run_models(STAGE, config, inputs, run, compare)
    system = system_prompt(config.configuration)
    prepared = prepare(config, [Arm(attack, system) for attack in attacks])
    results = partial(_results, config)
    return run_attempts(STAGE, config, inputs, prepared, "attack_success", results, made, config.graded)


def refuse_what_does_not_fit(attacks: tuple[Attack, ...], config: RobustnessConfig) -> None:
    """Settings and attacks that exclude one another.

    Raises:
        InputError: naming what to change.
    """
    if config.graded and isinstance(config.judge, RulesJudge):
        raise InputError("graded", config.graded, "the rules judge can't grade", "use an openai or vllm judge")
    place = config.attacks or SHIPPED
    if any(attack.kind == CEILING for attack in attacks):
        raise InputError("attacks", place, f"there is no kind {CEILING} here", "rename the kind")
    if sum(attack.kind == PLAIN for attack in attacks) > 1:
        raise InputError("attacks", place, f"two attacks are of kind {PLAIN}", "leave one to compare the others with")


def _results(config: RobustnessConfig, attempts: list[Attempt]) -> dict[str, Any]:
    results = summarize(attempts) | about_judge(config.judge, "attack_success")
    if config.graded:
        results["grading"] = about_judge(config.judge, "harmfulness")["judge"]
    return results | {"configuration": config.configuration}
