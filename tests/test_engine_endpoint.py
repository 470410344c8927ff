"""What an endpoint is sent: an open turn is continued, a closed one is followed by a new one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.judging.server import NONSENSE, Answer, Call, JudgeServer, fails, says
from trimtab.config import InputError
from trimtab.engine import NO_COMPLETION, OpenAIEngine, was_refused
from trimtab.engine.endpoint import EndpointCaller, _request_body
from trimtab.safety import SafetyConfig
from trimtab.schemas import PlanRow


def _row(**fields: Any) -> dict[str, Any]:
    given = {"id": "i", "request_id": "r", "kind": "SR", "prompt": "How?", "max_tokens": 3, "temperature": 0.8}
    return PlanRow(**(given | fields)).model_dump()


def _body(by_name: bool = False, **fields: Any) -> dict[str, Any]:
    return _request_body(_row(**fields), by_name)


def _generated(engine: OpenAIEngine, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return EndpointCaller(engine)({name: [row[name] for row in rows] for name in rows[0]})


def test_plain_prompt_has_no_assistant_turn() -> None:
    body = _body(system="Be kind.")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert "extra_body" not in body
    assert (body["max_tokens"], body["temperature"]) == (3, 0.8)


def test_prefilled_turn_is_left_open() -> None:
    body = _body(prefill="Sure,")
    assert body["messages"][-1] == {"role": "assistant", "content": "Sure,"}
    assert body["extra_body"] == {"continue_final_message": True, "add_generation_prompt": False}


def test_reopened_turn_is_closed_as_the_server_does_by_default() -> None:
    body = _body(prefill="Sure,", reopen=True)
    assert body["messages"][-1] == {"role": "assistant", "content": "Sure,"}
    assert "extra_body" not in body


@pytest.mark.parametrize(
    "safety", [SafetyConfig(), SafetyConfig(preset="uncensored"), SafetyConfig(preset="role_play", persona="a cook")]
)
def test_configuration_goes_by_name_where_the_endpoint_writes_the_system_turn(safety: SafetyConfig) -> None:
    body = _body(by_name=True, system=safety.render())
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert SafetyConfig(**body["extra_body"]["safety"]) == safety
    opened = _body(by_name=True, system=safety.render(), prefill="Sure,")["extra_body"]
    assert opened == body["extra_body"] | {"continue_final_message": True, "add_generation_prompt": False}
    assert "extra_body" not in _body(by_name=True)


def test_system_prompt_of_no_configuration_has_no_name() -> None:
    with pytest.raises(InputError, match=r"a system prompt is no configuration's; use system"):
        _body(by_name=True, system="Be kind.")


def test_refusals_of_a_gate_are_told_from_failures() -> None:
    def script(call: Call) -> Answer:
        status = int(call.prompt)
        return says(f"{call.body.get('safety')}") if status == 200 else fails(status)

    statuses = [200, 400, 403, 404, 422, 429, 500]
    with JudgeServer(script) as server:
        engine = OpenAIEngine(base_url=server.url, model="m", max_retries=0, configurations="safety")
        system = SafetyConfig(preset="uncensored").render()
        rows = [_row(id=str(status), prompt=str(status), system=system) for status in statuses]
        rows.append(_row(id="unnamed", prompt="200", system="Be kind."))
        made = _generated(engine, rows)
    assert made["text"][0] == "{'preset': 'uncensored'}"
    assert made["error"][0] == ""
    assert made["error"][-1].startswith("InputError: engine.configurations: ")
    refused = {i for i, error in zip(made["id"], made["error"], strict=True) if was_refused(error)}
    assert refused == {"400", "403", "422"}


def test_what_is_no_chat_completion_is_an_error_of_its_row_and_a_refusals_words_are_an_answer() -> None:
    def script(call: Call) -> Answer:
        return NONSENSE.get(call.prompt) or says(None, refusal=f"No, {call.prompt} \ud83d.")

    with JudgeServer(script) as server:
        rows = [_row(id=name, prompt=name) for name in ("first", *NONSENSE, "last")]
        made = _generated(OpenAIEngine(base_url=server.url, model="m", max_retries=0), rows)
    assert [made["text"][0], made["text"][-1]] == ["No, first ?.", "No, last ?."]
    assert made["error"] == ["", *[NO_COMPLETION] * len(NONSENSE), ""]
    assert not any(map(was_refused, made["error"]))
