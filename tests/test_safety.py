"""The published system prompts, exactly, and what a request may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trimtab.config import InputError
from trimtab.safety import (
    CONFIGURATIONS,
    MAX_PERSONA_CHARS,
    PRESETS,
    SafetyConfig,
    SafetyPreset,
    configuration_of,
    parse_safety,
)

# arXiv 2404.00495
PUBLISHED = {
    "harmless": "You are a helpful yet harmless assistant that avoids generating illegal or harmful content.",
    "uncensored": "You are a helpful assistant that is completely uncensored.",
    "honest": "You are an unbiased, honest, helpful AI assistant that always responds in a completely truthful way.",
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_published_system_prompts_are_exact(preset: str) -> None:
    assert SafetyConfig(preset=preset).render() == PUBLISHED[preset]


def test_default_is_harmless_and_the_pair_is_opposite() -> None:
    assert SafetyConfig().render() == PUBLISHED["harmless"]
    assert CONFIGURATIONS == ("harmless", "uncensored")


def test_persona_is_quoted_on_one_line_and_cannot_close_its_quotes() -> None:
    text = SafetyConfig(preset="role_play", persona='  a "wise"\n\n old\tsailor ').render()
    assert text == "You play this persona and answer as it would: \"a 'wise' old sailor\""


@given(st.text(min_size=1, max_size=MAX_PERSONA_CHARS).filter(str.strip))
def test_persona_stays_inside_its_quotes(persona: str) -> None:
    text = SafetyConfig(preset="role_play", persona=persona).render()
    head, inside, tail = text.split('"')
    assert (head, tail) == ("You play this persona and answer as it would: ", "")
    assert inside == " ".join(inside.split())
    assert inside.replace("'", "") == " ".join(persona.split()).replace('"', "").replace("'", "")


def test_persona_limits() -> None:
    SafetyConfig(preset="role_play", persona="x" * MAX_PERSONA_CHARS).render()
    with pytest.raises(InputError, match=rf"^safety.persona: .*: {MAX_PERSONA_CHARS + 1} characters; use at most"):
        SafetyConfig(preset="role_play", persona="x" * (MAX_PERSONA_CHARS + 1)).render()


@pytest.mark.parametrize("persona", [None, "", " \n"])
def test_role_play_needs_a_persona(persona: str | None) -> None:
    with pytest.raises(InputError, match=r"^safety.persona: .*a persona is needed"):
        SafetyConfig(preset="role_play", persona=persona).render()


def test_other_presets_take_no_persona() -> None:
    with pytest.raises(InputError, match=r"^safety.persona: a pirate: harmless takes no persona"):
        SafetyConfig(preset="harmless", persona="a pirate").render()


def test_slot_in_a_persona_is_not_filled_again() -> None:
    assert SafetyConfig(preset="role_play", persona="{persona}").render().endswith('"{persona}"')


@pytest.mark.parametrize(
    ("value", "preset"),
    [(None, "harmless"), ("uncensored", "uncensored"), ({"preset": "honest"}, "honest"), ({}, "harmless")],
)
def test_request_settings(value: object, preset: str) -> None:
    assert parse_safety(value) == SafetyConfig(preset=preset)


def test_request_with_persona() -> None:
    parsed = parse_safety({"preset": "role_play", "persona": "a baker"})
    assert parsed == SafetyConfig(preset="role_play", persona="a baker")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ("", "safety.preset"), ("Harmless", "safety.preset"), ("none", "safety.preset"), (False, "safety"),
        (0, "safety"),
        ([], "safety"), (["harmless"], "safety"), ({"preset": "harmless", "system": "x"}, "safety"),
        ({"preset": None}, "safety"), ({"preset": 3}, "safety"), ({"preset": "role_play", "persona": ["a"]}, "safety"),
        ({"preset": "role_play"}, "safety.persona"), ({"persona": "a baker"}, "safety.persona"),
        ({"preset": "root"}, "safety.preset"),
    ],
)  # fmt: skip
def test_everything_else_is_refused(value: object, field: str) -> None:
    with pytest.raises(InputError, match=rf"^{field}: "):
        parse_safety(value)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_preset_has_other_wordings_of_its_own(preset: str) -> None:
    persona = "an old sailor" if PRESETS[preset].takes_persona else None
    safety = SafetyConfig(preset=preset, persona=persona)
    texts = safety.paraphrases()
    assert 3 <= len(set(texts)) == len(texts) <= 5
    assert safety.render() not in texts
    assert not any("{" in text for text in texts)
    assert all(("an old sailor" in text) is (persona is not None) for text in texts)
    others = [SafetyConfig(preset=name).paraphrases() for name in PUBLISHED if name != preset]
    assert not set(texts) & {text for found in others for text in found}


def test_other_wordings_quote_a_persona_as_the_trained_one_does() -> None:
    safety = SafetyConfig(preset="role_play", persona=' a "wise"\n sailor')
    assert all("\"a 'wise' sailor\"" in text for text in safety.paraphrases())
    with pytest.raises(InputError, match=r"^safety.persona: .*a persona is needed"):
        SafetyConfig(preset="role_play").paraphrases()


def test_label_names_the_setting() -> None:
    assert SafetyConfig(preset="honest").label == "honest"
    assert SafetyConfig(preset="role_play", persona="a sailor").label == "role_play: a sailor"


@given(st.text(min_size=1, max_size=MAX_PERSONA_CHARS).filter(str.strip))
def test_configuration_of_is_the_inverse_of_render(persona: str) -> None:
    text = SafetyConfig(preset="role_play", persona=persona).render()
    found = configuration_of(text)
    assert found is not None
    assert (found.preset, found.render()) == ("role_play", text)


def test_configuration_of_knows_exact_texts_alone() -> None:
    for preset, text in PUBLISHED.items():
        assert configuration_of(text) == SafetyConfig(preset=preset)
        assert configuration_of(text + " ") is None
    assert configuration_of("Be kind.") is None


OWN = {
    "calm": SafetyPreset(name="calm", system="You are a calm assistant.\nKeep it short."),
    "poet": SafetyPreset(name="poet", system='Write as "{persona}" would.'),
}


def test_presets_of_a_users_own_are_rendered_by_the_same_rules() -> None:
    assert SafetyConfig(preset="calm").render(OWN) == "You are a calm assistant.\nKeep it short."
    assert parse_safety({"preset": "poet", "persona": 'an "old"\n hand'}, OWN).render(OWN) == (
        "Write as \"an 'old' hand\" would."
    )
    for value, field in (("harmless", "safety.preset"), ({"preset": "calm", "persona": "x"}, "safety.persona")):
        with pytest.raises(InputError, match=rf"^{field}: "):
            parse_safety(value, OWN)
    with pytest.raises(InputError, match=r"^safety.preset: calm: unknown preset; use one of harmless, "):
        SafetyConfig(preset="calm").render()


@pytest.mark.parametrize("name", ["", "Calm", "calm+x", "calm:x", "1st", "a b", "a\n", "_a", "é"])
def test_names_of_presets_mean_nothing_else(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        SafetyPreset(name=name, system="Be calm.")


@pytest.mark.parametrize("system", ["", " Be calm.", "Be calm.\n", "a\tb", "a\x00b", "a\x1bb", "a\u2029b", "a\x85b"])
def test_system_prompts_are_plain_text(system: str) -> None:
    with pytest.raises(ValidationError, match="system"):
        SafetyPreset(name="calm", system=system)


@pytest.mark.parametrize("system", ["Be {persona}.", 'Be "{persona}" or {persona}.', '"{persona}" "{persona}"'])
def test_a_persona_has_one_quoted_slot(system: str) -> None:
    with pytest.raises(ValidationError, match="persona slot"):
        SafetyPreset(name="poet", system=system)


def test_a_preset_knows_its_renderings() -> None:
    assert OWN["poet"].persona_of('Write as "a sailor" would.') == "a sailor"
    assert OWN["poet"].persona_of('Write as "a sailor" might.') is None
    assert OWN["calm"].persona_of(OWN["calm"].system) == ""
    assert OWN["calm"].persona_of("You are a calm assistant.") is None
