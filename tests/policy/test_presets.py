"""The presets of a server: the built-in ones, its user's, and what its model has learned."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from trimtab.config import InputError
from trimtab.policy.presets import Presets, configurations_of, require_learned
from trimtab.safety import PRESETS, SafetyConfig

CALM = "You are a calm assistant."
LEARNED = [{"name": name, "system": PRESETS[name].system} for name in ("harmless", "uncensored")]
SAILOR = {"name": "role_play", "system": SafetyConfig(preset="role_play", persona="an old sailor").render()}


def _file(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_builtin_ones_render_as_they_were_trained() -> None:
    presets = Presets.builtin()
    assert presets.names == ("harmless", "uncensored", "honest", "role_play")
    assert presets == Presets.from_file(None) == Presets.from_values({})
    for name in presets.names:
        safety = SafetyConfig(preset=name, persona='a "wise" sailor' if name == "role_play" else None)
        assert presets.render(safety) == safety.render()
        assert presets.hash(safety) == hashlib.sha256(safety.render().encode()).hexdigest()[:16]


def test_a_file_adds_and_replaces(tmp_path: Path) -> None:
    text = f'presets:\n  calm: {CALM}\n  honest: Tell the truth.\n  poet: |-\n    Write\n    as "{{persona}}".\n'
    presets = Presets.from_file(_file(tmp_path / "presets.yaml", text))
    assert presets.names == ("harmless", "uncensored", "honest", "role_play", "calm", "poet")
    assert presets.render(presets.parse("calm")) == CALM
    assert presets.render(presets.parse("honest")) == "Tell the truth."
    assert presets.render(presets.parse({"preset": "poet", "persona": 'Al "x"'})) == "Write\nas \"Al 'x'\"."
    assert presets.render(presets.parse("harmless")) == PRESETS["harmless"].system
    assert PRESETS["honest"].system != "Tell the truth."
    with pytest.raises(
        InputError, match=r"^safety.preset: angry: unknown preset; use one of harmless, .*, calm, poet$"
    ):
        presets.parse("angry")
    with pytest.raises(InputError, match=r"^safety.persona: "):
        presets.parse("poet")
    with pytest.raises(InputError, match=r"^safety.preset: calm: "):
        Presets.builtin().parse("calm")


@pytest.mark.parametrize(
    ("name", "system"),
    [
        ("Calm", CALM), ("calm+x", CALM), ("a:b", CALM), ("1a", CALM), ("", CALM), ("a b", CALM), ("a\n", CALM),
        ("x" * 41, CALM), ("calm", ""), ("calm", " "), ("calm", "a\x00b"), ("calm", "a\x1b[0m"), ("calm", "a\tb"),
        ("calm", "a\u2028b"), ("calm", "a\n"), ("calm", " a"), ("calm", "x" * 4001), ("calm", "Be {persona}."),
        ("calm", "Be '{persona}'."), ("calm", '"{persona}" and "{persona}"'), ("calm", '"{persona}" and {persona}'),
        ("calm", "a\ud800"), ("calm", 3), (3, CALM), ("calm", None), ("calm", {"system": CALM}), (True, CALM),
    ],
)  # fmt: skip
def test_what_is_no_preset(name: Any, system: Any) -> None:
    with pytest.raises(InputError, match=r"^presets\..*: .+; .+") as caught:
        Presets.from_values({name: system})
    assert str(caught.value).startswith(f"presets.{name}".strip())
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "calm: x",
        "presets: 3",
        "presets: [a]",
        "presets: {calm: x}\nother: 1",
        "{",
        "presets: !!python/name:os.x",
    ],
)
def test_what_is_no_file_of_presets(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"^presets: [^\n]+; [^\n]+$"):
        Presets.from_file(_file(tmp_path / "presets.yaml", text))


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^presets: .*can't be read \(No such file"):
        Presets.from_file(tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"presets: {calm: \xe9}")
    with pytest.raises(InputError, match=r"^presets: .*is not YAML"):
        Presets.from_file(tmp_path / "latin.yaml")
    with pytest.raises(InputError, match=r"^presets: .*is too large"):
        Presets.from_file(_file(tmp_path / "large.yaml", "#" * 300_000))


def test_a_set_never_changes() -> None:
    values = {"calm": CALM}
    presets = Presets.from_values(values)
    values["calm"] = "changed"
    assert presets["calm"].system == CALM
    with pytest.raises(TypeError):
        presets._by_name["calm"] = presets["honest"]  # type: ignore[index]


def test_description_is_of_the_named_ones() -> None:
    described = Presets.builtin().describe(["role_play", "harmless", "absent"])
    assert described == [
        {"name": "harmless", "system": PRESETS["harmless"].system, "takes_persona": False},
        {"name": "role_play", "system": PRESETS["role_play"].system, "takes_persona": True},
    ]
    assert len(Presets.builtin().describe()) == 4


def test_some_of_them() -> None:
    assert Presets.builtin().only(["uncensored", "harmless"]).names == ("harmless", "uncensored")
    with pytest.raises(InputError, match=r"^presets: calm: unknown preset"):
        Presets.builtin().only(["harmless", "calm"])
    with pytest.raises(InputError, match=r"^presets: uncensored: lack harmless"):
        Presets.builtin().only(["uncensored"])


def test_a_preset_that_was_never_learned_is_refused_unless_forced() -> None:
    presets = Presets.builtin()
    with pytest.raises(InputError, match=r"^presets: honest, role_play: the model was not trained under "):
        require_learned(presets, LEARNED, False)
    assert "honest, role_play" in (require_learned(presets, LEARNED, True) or "")
    assert require_learned(presets.learned(LEARNED), LEARNED, False) is None
    assert presets.learned(LEARNED).names == ("harmless", "uncensored")


def test_the_rendering_counts_and_not_the_name() -> None:
    presets = Presets.from_values({"mild": PRESETS["uncensored"].system, "uncensored": "Say everything."})
    assert presets.learned(LEARNED).names == ("harmless", "mild")


def test_a_persona_may_be_any() -> None:
    presets = Presets.builtin().learned([*LEARNED, SAILOR])
    assert presets.names == ("harmless", "uncensored", "role_play")
    empty = {"name": "role_play", "system": PRESETS["role_play"].system.replace("{persona}", "")}
    assert "role_play" not in Presets.builtin().learned([*LEARNED, empty]).names


def test_a_model_that_learned_no_harmless_is_refused() -> None:
    presets = Presets.builtin().learned([{"name": "plain", "system": ""}])
    assert presets.names == ("harmless",)
    with pytest.raises(InputError, match=r"^presets: harmless: the model was not trained"):
        require_learned(presets, [{"name": "plain", "system": ""}])


def test_a_model_without_a_record_gives_one_line() -> None:
    line = require_learned(Presets.builtin(), None, False)
    assert line is not None
    assert "no record" in line
    assert "\n" not in line


def test_the_record_of_a_model_folder(tmp_path: Path) -> None:
    assert configurations_of(tmp_path) is None
    _file(tmp_path / "trimtab.json", json.dumps({"configurations": LEARNED}))
    assert configurations_of(tmp_path) == LEARNED
    for text in ("", "[]", "{}", '{"configurations": [1]}', '{"configurations": 3}'):
        _file(tmp_path / "trimtab.json", text)
        with pytest.raises(InputError, match=r"^model: .*is no record of configurations"):
            configurations_of(tmp_path)
