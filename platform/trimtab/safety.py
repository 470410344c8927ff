"""Safety configurations and the only place that renders one into a system prompt.

Training on one rendering and serving another is the worst bug this project can have, so synthesis,
training, evaluation and serving all call ``SafetyConfig.render``. The texts of ``harmless``,
``uncensored`` and ``honest`` are those of Configurable Safety Tuning (arXiv 2404.00495). A server may
have presets of its user's besides; they are rendered, parsed and recognised by the same functions.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from trimtab.config import Config, InputError
from trimtab.data import lines

MAX_PERSONA_CHARS = 400
MAX_SYSTEM_CHARS = 4000
PERSONA_SLOT = "{persona}"
UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories that no system prompt has, a plain line break aside: controls, halves of pairs, separators."""


class SafetyPreset(Config):
    """A named safety configuration: a system prompt, which may have one slot for a persona."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)
    """The name that requests, training data and reports use; ``+`` and ``:`` mean something in a model's name."""
    system: str = Field(min_length=1, max_length=MAX_SYSTEM_CHARS)
    """The system prompt; ``{persona}`` marks where a role-play persona goes, quoted."""

    @field_validator("system")
    @classmethod
    def _is_plain_text(cls, system: str) -> str:
        if any(unicodedata.category(char) in UNSEEN for char in system if char != "\n"):
            raise _no_preset("holds a control character", "write plain text, with line breaks at most")
        if system != system.strip():
            raise _no_preset("begins or ends with white space", "remove it (in YAML: |- or >- for a block)")
        if system.count(PERSONA_SLOT) != system.count(f'"{PERSONA_SLOT}"') or system.count(PERSONA_SLOT) > 1:
            raise _no_preset("has a persona slot that isn't quoted, or more than one", f'write "{PERSONA_SLOT}" once')
        return system

    @property
    def takes_persona(self) -> bool:
        return PERSONA_SLOT in self.system

    def fill(self, persona: str | None) -> str:
        """The system prompt with the persona in its slot.

        Raises:
            InputError: a persona is missing, too long or not wanted.
        """
        if self.takes_persona:
            return self.system.replace(PERSONA_SLOT, _clean_persona(persona))
        if persona is not None:
            raise InputError("safety.persona", persona, f"{self.name} takes no persona", "leave it out")
        return self.system

    def persona_of(self, system: str) -> str | None:
        """The persona of a system prompt that this preset renders to (empty: it takes none); None: it renders none."""
        head, _, tail = self.system.partition(PERSONA_SLOT)
        persona = system.removeprefix(head).removesuffix(tail) if self.takes_persona else ""
        return persona if self.system.replace(PERSONA_SLOT, persona) == system else None


def _no_preset(problem: str, remedy: str) -> PydanticCustomError:
    return PydanticCustomError("preset", "{problem}", {"problem": problem, "remedy": remedy})


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

    def render(self, presets: Mapping[str, SafetyPreset] = PRESETS) -> str:
        """The system prompt, exactly as trained, measured and served.

        Args:
            presets: those that there are, by name.

        Raises:
            InputError: the preset is unknown, or a persona is missing, too long or not wanted.
        """
        preset = presets.get(self.preset)
        if preset is None:
            raise InputError("safety.preset", self.preset, "unknown preset", f"use one of {', '.join(presets)}")
        return preset.fill(self.persona)

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
        persona = preset.persona_of(system)
        if persona is not None:
            return SafetyConfig(preset=preset.name, persona=persona if preset.takes_persona else None)
    return None


def parse_safety(value: Any, presets: Mapping[str, SafetyPreset] = PRESETS) -> SafetyConfig:
    """The setting of a request body: nothing (harmless), a preset's name, or ``{"preset": …, "persona": …}``.

    Raises:
        InputError: the value is none of these, or names an unknown preset.
    """
    if value is None:
        return SafetyConfig()
    if isinstance(value, str):
        value = {"preset": value}
    remedy = f'use a preset ({", ".join(presets)}) or {{"preset": ..., "persona": ...}}'
    if not isinstance(value, dict) or not set(value) <= {"preset", "persona"}:
        raise InputError("safety", value, "not a safety configuration", remedy)
    if not all(isinstance(item, str) for item in value.values()):
        raise InputError("safety", value, "preset and persona must be text", remedy)
    config = SafetyConfig(**value)
    config.render(presets)
    return config
