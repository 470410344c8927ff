"""What an endpoint is sent: an open turn is continued, a closed one is followed by a new one."""

from __future__ import annotations

from typing import Any

from trimtab.engine.endpoint import _request_body
from trimtab.schemas import PlanRow


def _body(**fields: Any) -> dict[str, Any]:
    row = PlanRow(id="i", request_id="r", kind="SR", prompt="How?", max_tokens=3, temperature=0.8, **fields)
    return _request_body(row.model_dump())


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
