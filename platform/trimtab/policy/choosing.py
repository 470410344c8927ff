"""Which safety configuration a request gets: the body's ``safety``, the model's alias, or the key's default.

``name+preset`` is for clients that have no more than a box for the model; ``name:adapter`` names a LoRA adapter, as Ray
reads it; ``name:adapter+preset`` is both. Names are compared exactly: no decoding, no trimming, no case folding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trimtab.config import InputError
from trimtab.policy.body import bad
from trimtab.policy.keys import Key
from trimtab.policy.ports import Refused
from trimtab.policy.presets import Presets
from trimtab.safety import DEFAULT_PRESET, SafetyConfig

ALIAS = "+"


def choose(safety: Any, alias: str | None, default: str | None, presets: Presets) -> SafetyConfig:
    """The configuration of a request.

    Args:
        safety: the body's field; None: not given.
        alias: the preset of the model's alias.
        default: the key's.

    Raises:
        Refused: 400, it is no configuration, or the body and the alias differ.
    """
    chosen = _parsed(safety if safety is not None else alias or default or DEFAULT_PRESET, presets)
    if safety is not None and alias is not None and chosen.preset != alias:
        raise bad("safety", "and the model's alias name different presets", "name one of them", "two_presets")
    return chosen


def rendered(safety: SafetyConfig, presets: Presets) -> str:
    """The system prompt of a configuration.

    Raises:
        Refused: 400, the persona doesn't fit.
    """
    try:
        return presets.render(safety)
    except InputError as error:
        raise _without_value(error) from None


def split_model(asked: str | None, served: str, adapters: tuple[str, ...], presets: Presets) -> tuple[str, str | None]:
    """(the model's name for the engine, the alias's preset).

    Raises:
        Refused: 404, there is no such model.
    """
    name, plus, preset = (asked if asked is not None else served).partition(ALIAS)
    if name not in (served, *(f"{served}:{adapter}" for adapter in adapters)) or (plus and preset not in presets.names):
        raise Refused(404, "model_not_found", "model: no such model; GET /v1/models lists them", "model")
    return name, preset if plus else None


def permit(key: Key, preset: str) -> None:
    """Raise where a key may not choose a preset.

    Raises:
        Refused: 403.
    """
    if not key.allows(preset):
        raise Refused(403, "preset_not_allowed", "safety: this key may not use this preset; see /v1/safety", "safety")


def default_of(key: Key) -> str:
    """The preset of a request that names none."""
    return key.default or DEFAULT_PRESET


def allowed(key: Key, presets: Presets) -> list[str]:
    """The presets that a key may choose."""
    return [name for name in presets.names if key.allows(name)]


def model_names(key: Key, served: str, adapters: tuple[str, ...], presets: Presets) -> Iterator[str]:
    """What a key may write as ``model``: each name, and its aliases; a preset with a persona has none."""
    names = allowed(key, presets)
    plain = [item["name"] for item in presets.describe(names) if not item["takes_persona"]]
    for name in (served, *(f"{served}:{adapter}" for adapter in adapters)):
        yield name
        yield from (f"{name}{ALIAS}{preset}" for preset in plain)


def _parsed(value: Any, presets: Presets) -> SafetyConfig:
    try:
        return presets.parse(value)
    except InputError as error:
        raise _without_value(error) from None


def _without_value(error: InputError) -> Refused:
    """The same line without the caller's value, which nobody may see again."""
    field, _, problem, remedy = error.__reduce__()[1]
    return bad(str(field), str(problem), str(remedy))
