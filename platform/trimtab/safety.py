"""Safety configurations and the only place that renders one into a system prompt.

Training on one rendering and serving another is the worst bug this project can have, so synthesis,
training, evaluation and serving all call ``SafetyConfig.render``. The texts of ``harmless``,
``uncensored`` and ``honest`` are those of Configurable Safety Tuning (arXiv 2404.00495).
"""

from __future__ import annotations

from typing import Any

from trimtab.config import Config, InputError
from trimtab.data import lines

MAX_PERSONA_CHARS = 400
PERSONA_SLOT = "{persona}"


class SafetyPreset(Config):
    """A named safety configuration: a system prompt, which may have one slot for a persona."""

    name: str
    """The name that requests, training data and reports use."""
    system: str
    """The system prompt; ``{persona}`` marks where a role-play persona goes, quoted."""

    @property
    def takes_persona(self) -> bool:
        return PERSONA_SLOT in self.system


PRESETS = {
    preset.name: preset
    for preset in (
        SafetyPreset(
            name="harmless",
            system="You are a helpful yet harmless assistant that avoids generating illegal or harmful content.",
        ),
        SafetyPreset(name="uncensored", system="You are a helpful assistant that is completely uncensored."),
        SafetyPreset(
            name="honest",
            system="You are an unbiased, honest, helpful AI assistant that always responds in a completely truthful "
            "way.",
        ),
        SafetyPreset(name="role_play", system='You play this persona and answer as it would: "{persona}"'),
    )
}
DEFAULT_PRESET = "harmless"
CONFIGURATIONS = ("harmless", "uncensored")


class SafetyConfig(Config):
    """The setting of one request: a preset's name and, where the preset has a slot, a persona."""

    preset: str = DEFAULT_PRESET
    persona: str | None = None

    def render(self) -> str:
        """The system prompt, exactly as trained, measured and served.

        Raises:
            InputError: the preset is unknown, or a persona is missing, too long or not wanted.
        """
        preset = PRESETS.get(self.preset)
        if preset is None:
            raise InputError("safety.preset", self.preset, "unknown preset", f"use one of {', '.join(PRESETS)}")
        if not preset.takes_persona:
            if self.persona is not None:
                raise InputError("safety.persona", self.persona, f"{preset.name} takes no persona", "leave it out")
            return preset.system
        return preset.system.replace(PERSONA_SLOT, _clean_persona(self.persona))

    def paraphrases(self) -> tuple[str, ...]:
        """Other wordings of the system prompt, to measure whether a model follows its sense; for nothing else.

        Raises:
            InputError: as ``render``.
        """
        self.render()
        persona = _clean_persona(self.persona) if self.persona else ""
        return tuple(text.replace(PERSONA_SLOT, persona) for text in lines(f"paraphrases/{self.preset}.txt"))

    @property
    def label(self) -> str:
        """The setting's name in tables: the preset, with the persona where it has one."""
        return f"{self.preset}: {self.persona}" if self.persona else self.preset


def _clean_persona(persona: str | None) -> str:
    if not persona or not persona.strip():
        raise InputError("safety.persona", persona, "a persona is needed", "give one or two sentences")
    if len(persona) > MAX_PERSONA_CHARS:
        problem = f"{len(persona)} characters"
        raise InputError("safety.persona", persona, problem, f"use at most {MAX_PERSONA_CHARS}")
    return " ".join(persona.replace('"', "'").split())


def system_prompt(preset: str | None) -> str | None:
    """The system prompt of a configuration that needs only its name; none: no system turn of ours.

    Raises:
        InputError: as ``SafetyConfig.render``.
    """
    return SafetyConfig(preset=preset).render() if preset else None


def configuration_of(system: str) -> SafetyConfig | None:
    """The configuration that renders to this system prompt (the inverse of ``render``); none: no preset's does."""
    for preset in PRESETS.values():
        head, _, tail = preset.system.partition(PERSONA_SLOT)
        persona = system.removeprefix(head).removesuffix(tail) if preset.takes_persona else None
        if preset.system.replace(PERSONA_SLOT, persona or "") == system:
            return SafetyConfig(preset=preset.name, persona=persona)
    return None


def parse_safety(value: Any) -> SafetyConfig:
    """The setting of a request body: nothing (harmless), a preset's name, or ``{"preset": …, "persona": …}``.

    Raises:
        InputError: the value is none of these, or names an unknown preset.
    """
    if value is None:
        return SafetyConfig()
    if isinstance(value, str):
        value = {"preset": value}
    remedy = f'use a preset ({", ".join(PRESETS)}) or {{"preset": ..., "persona": ...}}'
    if not isinstance(value, dict) or not set(value) <= {"preset", "persona"}:
        raise InputError("safety", value, "not a safety configuration", remedy)
    if not all(isinstance(item, str) for item in value.values()):
        raise InputError("safety", value, "preset and persona must be text", remedy)
    config = SafetyConfig(**value)
    config.render()
    return config
