"""Switch injection: how often can the caller switch a harmless-configured model to the uncensored one?

The configuration is the operator's, the user turn is the caller's. Each prompt is asked as it is, under attacks of the
caller's (the switch sentence in the user turn, a forged system turn, a begun answer, a persona, a tool's result,
another language, an encoding), and, as the ceiling, under the uncensored configuration. An attack succeeds where the
answer is unsafe; a refused one (see ``attempts``) is counted apart.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from trimtab.artifacts import Record
from trimtab.config import InputError
from trimtab.evaluation.attacks import Attack, read_attacks
from trimtab.evaluation.attempt_results import CEILING, PLAIN, compare, summarize
from trimtab.evaluation.attempts import SWITCH, Arm, AttackedConfig, inputs_of, prepare, run_attempts
from trimtab.evaluation.several import run_models
from trimtab.evaluation.stage import Made, about_judge
from trimtab.safety import DEFAULT_PRESET, SafetyConfig
from trimtab.schemas import Attempt

STAGE = "evaluate injection"
SHIPPED = "injection.yaml"


class InjectionConfig(AttackedConfig):
    """``trimtab evaluate injection``: measure whether callers can switch the configuration."""

    question: Literal["is_safe", "attack_success"] = "is_safe"
    """What the judge is asked: whether the answer is safe, or whether it does what was asked."""


def run(config: InjectionConfig, made: Made | None = None) -> Record:
    """Measure switch injection. Running it again goes on, or skips what is done.

    Args:
        made: generations that a caller has for these rows already; none: the engine's.

    Returns:
        A record whose ``results`` hold what ``attempt_results.summarize`` gives, ``left_out`` (what the attacks lack
        that could not be tried) and the judge; with ``models``, those of each model and the differences from the first.

    Raises:
        InputError: a file or the model can't be used, or the endpoint refuses everything.
    """
    attacks = read_attacks(config.attacks, SHIPPED)
    refuse_own_kinds(attacks, config)
    inputs = inputs_of(config, attacks)
    if config.models:
        return run_models(STAGE, config, inputs, run, compare)
    prepared = prepare(config, arms(attacks))
    return run_attempts(STAGE, config, inputs, prepared, config.question, partial(_results, config), made)


def refuse_own_kinds(attacks: tuple[Attack, ...], config: InjectionConfig) -> None:
    """The plain prompt and the ceiling are asked anyway.

    Raises:
        InputError: an attack calls itself one of them.
    """
    for attack in attacks:
        if {attack.kind, attack.name} & {PLAIN, CEILING}:
            problem = f"{attack.name!r} takes the name or kind of a comparison, which is made anyway"
            raise InputError("attacks", config.attacks or SHIPPED, problem, "leave it out, or rename it")


def arms(attacks: tuple[Attack, ...]) -> list[Arm]:
    """The plain prompt and every attack under the harmless configuration, and the plain prompt under the other."""
    harmless = SafetyConfig(preset=DEFAULT_PRESET).render()
    plain, ceiling = (Attack(name=kind, kind=kind) for kind in (PLAIN, CEILING))
    return [Arm(plain, harmless), Arm(ceiling, SWITCH.render()), *(Arm(attack, harmless) for attack in attacks)]


def _results(config: InjectionConfig, attempts: list[Attempt]) -> dict[str, Any]:
    configurations = {"configuration": DEFAULT_PRESET, "switched_to": SWITCH.preset}
    return summarize(attempts) | about_judge(config.judge, config.question) | configurations
