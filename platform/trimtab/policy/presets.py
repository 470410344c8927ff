"""The presets that a server offers: the built-in ones and its user's, and whether the model has learned them.

A ``Presets`` never changes, so a request keeps the one that it began with while another takes its place.
Rendering is ``trimtab.safety``'s; here is only which presets there are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from trimtab.config import InputError
from trimtab.safety import DEFAULT_PRESET, PRESETS, SafetyConfig, SafetyPreset, parse_safety

LEARNED = "trimtab.json"
"""The file of a model folder that says under which configurations the model was trained."""
MAX_FILE_BYTES = 256 * 1024


class Presets:
    """An immutable set of presets by name; ``harmless``, the fallback of all requests, is always among them."""

    def __init__(self, presets: Iterable[SafetyPreset]) -> None:
        by_name = {preset.name: preset for preset in presets}
        if DEFAULT_PRESET not in by_name:
            raise InputError("presets", ", ".join(by_name), f"lack {DEFAULT_PRESET}, the fallback", "keep it")
        self._by_name: Mapping[str, SafetyPreset] = MappingProxyType(by_name)

    @classmethod
    def builtin(cls) -> Presets:
        """The four of this package."""
        return cls(PRESETS.values())

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str = "presets") -> Presets:
        """The built-in presets, and those of a mapping from names to system prompts, which add or replace.

        Args:
            where: what the mapping is called in a message.

        Raises:
            InputError: a name or a system prompt can't be one.
        """
        own = [_preset(name, system, where) for name, system in values.items()]
        return cls([*PRESETS.values(), *own])

    @classmethod
    def from_file(cls, path: Path | None) -> Presets:
        """The built-in presets, and those of a YAML file ``{presets: {name: system prompt}}``; no file: these alone.

        Raises:
            InputError: the file can't be read, or holds something else.
        """
        if path is None:
            return cls.builtin()
        values = _read_yaml(path)
        presets = values.get("presets") if isinstance(values, dict) and set(values) == {"presets"} else None
        if not isinstance(presets, dict):
            problem = "is not a mapping of the one key presets to names and system prompts"
            raise InputError("presets", path, problem, 'write "presets:" and below it "name: system prompt"')
        return cls.from_values(presets, str(path))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> SafetyPreset:
        return self._by_name[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Presets) and dict(self._by_name) == dict(other._by_name)

    def __hash__(self) -> int:
        return hash(tuple((preset.name, preset.system) for preset in self._by_name.values()))

    def only(self, names: Sequence[str]) -> Presets:
        """These of them.

        Raises:
            InputError: one isn't there, or harmless isn't named.
        """
        for name in names:
            if name not in self:
                raise InputError("presets", name, "unknown preset", f"use some of {', '.join(self.names)}")
        return Presets(self[name] for name in self.names if name in names)

    def learned(self, configurations: Sequence[Mapping[str, Any]]) -> Presets:
        """Those whose rendering a model's record has (see ``configurations_of``), and harmless in any case."""
        return self.only([name for name in self.names if name == DEFAULT_PRESET or _knows(configurations, self[name])])

    def parse(self, value: Any) -> SafetyConfig:
        """The setting that a request's ``safety`` means.

        Raises:
            InputError: it is no setting, or its preset isn't there.
        """
        return parse_safety(value, self._by_name)

    def render(self, safety: SafetyConfig) -> str:
        """The system prompt of a setting.

        Raises:
            InputError: as ``SafetyConfig.render``.
        """
        return safety.render(self._by_name)

    def hash(self, safety: SafetyConfig) -> str:
        """Sixteen hex digits of the rendering: what an answer's header and the audit log say was applied."""
        return hashlib.sha256(self.render(safety).encode()).hexdigest()[:16]

    def describe(self, names: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """What ``/v1/safety`` tells of the named presets (all of them); names that aren't there are left out."""
        wanted = self.names if names is None else set(names)
        return [
            {"name": preset.name, "system": preset.system, "takes_persona": preset.takes_persona}
            for preset in self._by_name.values()
            if preset.name in wanted
        ]


def _preset(name: Any, system: Any, where: str) -> SafetyPreset:
    field = f"presets.{name}"
    if not isinstance(name, str) or not isinstance(system, str):
        raise InputError(field, type(system).__name__, f"name and system prompt must be text (in {where})", "quote it")
    try:
        return SafetyPreset(name=name, system=system)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        remedy = problem.get("ctx", {}).get("remedy", "use at most 40 letters a to z, digits and _")
        if problem["loc"] == ("system",) and problem["type"] != "preset":
            remedy = "write a system prompt of 1 to 4000 characters"
        message = f"{problem['loc'][0]}: {problem['msg']} (in {where})"
        raise InputError(field, ascii(problem["input"]), message, remedy) from None


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise InputError("presets", path, "is too large", f"use at most {MAX_FILE_BYTES} bytes")
        return yaml.safe_load(raw.decode())
    except OSError as error:
        raise InputError("presets", path, f"can't be read ({error.strerror})", "give a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("presets", path, f"is not YAML ({error})", "mend the file") from error


def configurations_of(folder: Path) -> list[dict[str, str]] | None:
    """The configurations that a model folder says it was trained under: name and system prompt; None: it has no record.

    Raises:
        InputError: the record is none.
    """
    path = folder / LEARNED
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["configurations"]
        return [{"name": str(item["name"]), "system": str(item["system"])} for item in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError("model", path, "is no record of configurations", "export the model again") from error


def require_learned(
    presets: Presets, configurations: Sequence[Mapping[str, Any]] | None, forced: bool = False
) -> str | None:
    """Refuse presets under whose rendering the model was never trained; a persona may be any.

    Args:
        configurations: the model's record, from ``configurations_of``; None: a model that has none, such as a base
            model, whose presets are only system prompts.
        forced: serve them all the same.

    Returns:
        A line to say at start-up, where there is something to say.

    Raises:
        InputError: the model has a record and a preset isn't in it.
    """
    if configurations is None:
        return (
            "this model has no record of learned safety configurations: its presets are system prompts like any other"
        )
    missing = [name for name in presets.names if not _knows(configurations, presets[name])]
    if not missing:
        return None
    if forced:
        return f"forced: the model never learned {', '.join(missing)}; what it does under them was not trained"
    problem = "the model was not trained under this system prompt"
    raise InputError("presets", ", ".join(missing), problem, "serve only what it learned, or force it")


def _knows(configurations: Sequence[Mapping[str, Any]], preset: SafetyPreset) -> bool:
    rendered = (preset.persona_of(str(item["system"])) for item in configurations)
    return any(found is not None and bool(found) is preset.takes_persona for found in rendered)
