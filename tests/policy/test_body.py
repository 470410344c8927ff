"""A request's body: what passes, and how what doesn't is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policy.gated import BODY
from trimtab.policy.body import FIELDS, TOOL_FIELDS, parse_body
from trimtab.policy.ports import Refused
from trimtab.policy.settings import GateSettings

SETTINGS = GateSettings()
FORBIDDEN = (
    "continue_final_message", "add_generation_prompt", "chat_template", "chat_template_kwargs", "documents",
    "truncate_prompt_tokens", "truncation_side", "logit_bias", "allowed_token_ids", "bad_words", "structured_outputs",
    "min_tokens", "ignore_eos", "stop_token_ids", "prompt_logprobs", "echo", "return_token_ids", "cache_salt",
    "priority", "logprobs", "top_logprobs", "functions", "function_call", "response_format", "guided_json",
    "add_special_tokens", "mm_processor_kwargs", "kv_transfer_params", "extra_body", "system", "top_k", "min_p",
    "use_beam_search", "request_id", "session_id", "return_prompt_text", "include_reasoning", "thinking_token_budget",
    "skip_special_tokens", "vllm_xargs", "best_of", "prompt", "input_ids", "metadata", "store", "",
)  # fmt: skip


def _parse(**fields: Any) -> Any:
    return parse_body(json.dumps(BODY | fields).encode(), SETTINGS)


def _refused(raw: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        parse_body(raw, SETTINGS)
    assert caught.value.status == 400
    assert caught.value.message.startswith(f"{caught.value.param}: ")
    return caught.value


def test_listed_fields_are_taken() -> None:
    asked = _parse(max_tokens=5, temperature=0.5, stream=True, stop=["\n"], seed=1, user="u", safety="honest", n=2,
                   stream_options={"include_usage": True}, top_p=1)  # fmt: skip
    assert asked.messages == BODY["messages"]
    assert (asked.model, asked.safety, asked.max_tokens, asked.n) == ("m", "honest", 5, 2)
    assert asked.sampling == {"temperature": 0.5, "top_p": 1, "seed": 1}
    assert asked.texts == {"stop": ["\n"], "user": "u"}
    assert asked.stream
    assert asked.include_usage


def test_null_is_not_given() -> None:
    asked = _parse(safety=None, max_tokens=None, stop=None, tools=None, stream=None, n=None, temperature=None)
    assert (asked.safety, asked.max_tokens, asked.n, asked.stream, asked.sampling) == (None, None, 1, False, {})


@pytest.mark.parametrize("field", FORBIDDEN)
def test_other_fields_do_not_pass(field: str) -> None:
    refused = _refused(json.dumps(BODY | {field: True}).encode())
    assert refused.param == (field or "body")
    assert "this field does not pass" in refused.message


@given(st.text(max_size=20).filter(lambda name: name not in FIELDS | TOOL_FIELDS))
def test_no_unlisted_field_passes(field: str) -> None:
    assert "this field does not pass" in _refused(json.dumps({field: 1, "messages": [1]}).encode()).message


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b'{"model": "a", "model": "b"}', "model: is given twice"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "content: is given twice"),
        (b'{"safety": {"preset": "harmless", "preset": "uncensored"}}', "preset: is given twice"),
        (b'{"safety": "harmless", "safet\\u0079": "uncensored"}', "safety: is given twice"),
        (b'{"temperature": NaN}', "body: NaN is no JSON number"),
        (b'{"temperature": -Infinity}', "body: -Infinity is no JSON number"),
        (b'{"temperature": 1e999}', "body: a number that large is no JSON number"),
        (b'{"a": [Infinity]}', "body: Infinity is no JSON number"),
        (b"", "body: is not a JSON object"), (b"{", "body: is not a JSON object"),
        (b"\xff\xfe", "body: is not a JSON object"), (b"[" * 100_000, "body: is not a JSON object"),
        (b"[]", "body: is not a JSON object"), (b'"text"', "body: is not a JSON object"),
        (b"null", "body: is not a JSON object"), (b'{"seed": ' + b"9" * 9999 + b"}", "body: is not a JSON object"),
        ("\ufeff{}".encode(), "body: is not a JSON object"), (json.dumps(BODY).encode("utf-16"), "body: is not a"),
        (json.dumps(BODY).encode("utf-32"), "body: is not a"), (b'{"user": "\xed\xa0\x80"}', "body: is not a JSON"),
        (b'{"messages": ' + b"[" * 40 + b"]" * 40 + b"}", "body: is nested too deep"),
        (b'{"tools": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "body: is nested too deep"),
    ],
)  # fmt: skip
def test_body_that_is_no_clear_object_is_refused(raw: bytes, line: str) -> None:
    assert _refused(raw).message.startswith(line)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [0, -1, 4097, True, 1.5, "5", [1]]), ("max_completion_tokens", [0, -1, 4097, True, "5"]),
        ("n", [0, 5, True, "1", 1.0]), ("temperature", [-0.1, 2.1, "1", True]), ("top_p", [0, 1.1, "1"]),
        ("frequency_penalty", [-2.1, 2.1]), ("presence_penalty", [-3, [1]]), ("seed", [1.5, "1", 2**63, True]),
        ("stop", [1, [""], "", ["x"] * 17, [1], ["x" * 257], {"a": 1}]), ("stream", ["true", 1, 0]),
        ("user", [1, "x" * 257, ["x"]]), ("model", [1, ["m"], {"m": 1}]), ("messages", ["hi", [], {}, 1]),
        ("tools", ["x", [], [1], [{"type": "function"}], [{"type": "code", "function": {"name": "f"}}],
                   [{"type": "function", "function": {"name": "a b"}}],
                   [{"type": "function", "function": {"name": "f", "code": 1}}],
                   [{"type": "function", "function": {"name": "f", "parameters": []}}]]),
    ],
)  # fmt: skip
def test_values_out_of_range_name_their_field(field: str, values: list[Any]) -> None:
    for value in values:
        refused = _refused(json.dumps(BODY | {field: value}).encode())
        assert str(refused.param).startswith(field), value


@pytest.mark.parametrize("value", [[], 1, {"include_usage": 1}, {"continuous_usage_stats": True}, {"x": 1}])
def test_stream_options_are_usage_alone(value: Any) -> None:
    refused = _refused(json.dumps(BODY | {"stream": True, "stream_options": value}).encode())
    assert str(refused.param).startswith("stream_options")


def test_fields_that_need_another_are_refused_alone() -> None:
    assert _refused(json.dumps(BODY | {"stream_options": {"include_usage": True}}).encode()).param == "stream_options"
    assert _refused(json.dumps(BODY | {"tool_choice": "auto"}).encode()).param == "tool_choice"


def test_two_lengths_that_differ_are_refused() -> None:
    assert _parse(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert _refused(json.dumps(BODY | {"max_tokens": 5, "max_completion_tokens": 6}).encode()).param == "max_tokens"


def test_a_value_is_never_repeated() -> None:
    secret = "tt-" + "k" * 43
    for fields in ({"temperature": secret}, {"stop": [[secret]]}, {"tool_choice": secret, "tools": [secret]},
                   {"messages": secret}, {"n": secret}, {secret: 1},
                   {"stream_options": {secret: 1}, "stream": True}):  # fmt: skip
        assert secret not in _refused(json.dumps(BODY | fields).encode()).message.replace(" ", "")
