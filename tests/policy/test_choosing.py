"""Which configuration a request gets, and who may have it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.policy.gated import key
from trimtab.policy.choosing import allowed, choose, model_names, permit, rendered, split_model
from trimtab.policy.ports import Refused
from trimtab.policy.presets import Presets
from trimtab.safety import SafetyConfig

PRESETS = Presets.builtin()


@pytest.mark.parametrize(
    ("safety", "alias", "default", "expected"),
    [
        (None, None, None, "harmless"),
        (None, None, "uncensored", "uncensored"),
        (None, "honest", "uncensored", "honest"),
        ("honest", None, "uncensored", "honest"),
        ({"preset": "honest"}, "honest", None, "honest"),
        ("harmless", "harmless", "uncensored", "harmless"),
        ({}, None, None, "harmless"),
    ],
)
def test_body_then_alias_then_key_then_harmless(safety: Any, alias: Any, default: Any, expected: str) -> None:
    assert choose(safety, alias, default, PRESETS) == SafetyConfig(preset=expected)


def test_persona_fits_the_alias_of_its_preset() -> None:
    chosen = choose({"preset": "role_play", "persona": "a cook"}, "role_play", None, PRESETS)
    assert chosen.persona == "a cook"
    with pytest.raises(Refused, match=r"^safety.persona: a persona is needed"):
        choose(None, "role_play", None, PRESETS)


def test_body_and_alias_that_differ_are_refused() -> None:
    with pytest.raises(Refused) as caught:
        choose("harmless", "uncensored", None, PRESETS)
    assert (caught.value.status, caught.value.param, caught.value.reason) == (400, "safety", "two_presets")


@pytest.mark.parametrize(
    "value", ["off", "", 1, True, [], {"system": "x"}, {"preset": 1}, {"preset": "harmless", "persona": "x"}]
)
def test_value_that_is_no_configuration_is_refused_without_repeating_it(value: Any) -> None:
    with pytest.raises(Refused) as caught:
        choose(value, None, None, PRESETS)
    assert caught.value.status == 400
    assert str(caught.value.param).startswith("safety")
    with pytest.raises(Refused) as caught:
        choose("tt-secret-of-mine", None, None, PRESETS)
    assert "secret" not in caught.value.message


def test_rendering_that_fails_is_refused() -> None:
    with pytest.raises(Refused, match=r"^safety.persona: "):
        rendered(SafetyConfig(preset="role_play", persona="x" * 401), PRESETS)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, ("m", None)),
        ("m", ("m", None)),
        ("m+honest", ("m", "honest")),
        ("m:kind", ("m:kind", None)),
        ("m:kind+honest", ("m:kind", "honest")),
    ],
)
def test_alias_is_taken_off_the_model(asked: str | None, expected: tuple[str, str | None]) -> None:
    assert split_model(asked, "m", ("kind",), PRESETS) == expected


@pytest.mark.parametrize(
    "asked", ["", "x", "M", "m+", "m+x", "m+Honest", "m:", "m:x", "m+honest+honest", "m:kind:kind"]
)
def test_other_models_are_a_404(asked: str) -> None:
    with pytest.raises(Refused) as caught:
        split_model(asked, "m", ("kind",), PRESETS)
    assert (caught.value.status, caught.value.param) == (404, "model")


def test_a_key_has_its_presets_and_no_other() -> None:
    permit(key("kind"), "harmless")
    with pytest.raises(Refused) as caught:
        permit(key("kind"), "uncensored")
    assert caught.value.status == 403
    assert allowed(key("kind"), PRESETS) == ["harmless"]
    assert allowed(key("all"), PRESETS) == ["harmless", "uncensored", "honest", "role_play"]
    assert list(model_names(key("kind"), "m", (), PRESETS)) == ["m", "m+harmless"]
