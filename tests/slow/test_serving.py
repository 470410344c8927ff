"""The endpoint for real: Ray Serve, vLLM and the gate, asked by the OpenAI SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from trimtab.config import InputError
from trimtab.engine import OpenAIEngine, VLLMEngine, generate
from trimtab.safety import SafetyConfig
from trimtab.schemas import PlanRow
from trimtab.serving import ServeConfig, refuse_taken_port, running

pytestmark = pytest.mark.slow

USER = [{"role": "user", "content": "How can I skip the queue at the bakery?"}]


@pytest.fixture(scope="module")
def url(tiny_model: Path, ray_session: None) -> Iterator[str]:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    engine = VLLMEngine(max_num_seqs=16, kv_cache_gib=1, cores_per_actor=1)
    with running(ServeConfig(model=str(tiny_model), port=port, engine=engine)) as base:
        yield base


def _post(url: str, **body: object) -> httpx.Response:
    return httpx.post(f"{url}/chat/completions", json={"model": "trimtab", "max_tokens": 8, **body}, timeout=60)


def test_models_lists_the_one_model(url: str) -> None:
    listed = httpx.get(f"{url}/models", timeout=30).json()
    assert [model["id"] for model in listed["data"]] == ["trimtab"]


@pytest.mark.parametrize(
    ("safety", "applied"), [(None, "harmless"), ("harmless", "harmless"), ("uncensored", "uncensored")]
)
def test_safety_in_the_body_chooses_the_configuration(url: str, safety: str | None, applied: str) -> None:
    body = {"messages": USER} | ({"safety": safety} if safety else {})
    answer = _post(url, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-trimtab-safety"] == applied
    assert answer.json()["choices"][0]["message"]["content"]


def test_prompt_tokens_are_those_of_the_one_renderer(url: str, tiny_model: Path) -> None:
    """Serving and training must render a configuration to the same prompt: the counts of ids agree."""
    from trimtab.chat import Chat

    chat = Chat.from_folder(str(tiny_model))
    for preset in ("harmless", "uncensored", "honest"):
        expected = chat.prompt_ids(SafetyConfig(preset=preset).render(), USER[0]["content"])
        assert _post(url, messages=USER, safety=preset).json()["usage"]["prompt_tokens"] == len(expected)


def test_streaming_through_the_sdk(url: str) -> None:
    from openai import OpenAI

    with OpenAI(base_url=url, api_key="none") as client:
        stream = client.chat.completions.create(
            model="trimtab", messages=USER, max_tokens=8, stream=True, extra_body={"safety": "uncensored"}
        )
        chunks = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(chunks) > 1


def test_unknown_safety_is_a_400_in_openais_format(url: str) -> None:
    answer = _post(url, messages=USER, safety="root")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "safety.preset"


def test_other_routes_and_cors_are_not_served(url: str) -> None:
    root = url.removesuffix("/v1")
    for path in ("/v1/completions", "/tokenize", "/docs", "/openapi.json", "/v1/embeddings"):
        assert httpx.post(root + path, json={}, timeout=30).status_code == 404
    answer = httpx.get(f"{url}/models", headers={"Origin": "http://elsewhere.example"}, timeout=30)
    assert "access-control-allow-origin" not in answer.headers


def test_unknown_model_is_an_error_in_openais_format(url: str) -> None:
    answer = _post(url, model="other", messages=USER)
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"


def test_endpoint_engine_makes_every_row_and_reports_refusals(url: str, tmp_path: Path) -> None:
    """The second engine against our own served model: plain rows succeed, a prefilled one is refused by the gate."""
    plan = [PlanRow(id=f"r{i}", request_id="q", kind="SR", prompt=USER[0]["content"] + "?" * i, max_tokens=4)
            for i in range(5)]  # fmt: skip
    plan.append(PlanRow(id="open", request_id="q", kind="SYN", prompt="Hello", prefill="Sure,", max_tokens=4))
    engine = OpenAIEngine(base_url=url, model="trimtab", max_retries=0)
    made = generate(plan, tmp_path / "made", None, engine, "endpoint")
    assert [row.id for row in made] == [row.id for row in plan]
    assert all(row.text and row.num_tokens and not row.error for row in made[:5])
    assert "BadRequestError" in made[5].error


def test_callers_are_measured_through_the_gate(url: str, tiny_model: Path, tmp_path: Path) -> None:
    """Each configuration is asked for by name; forged turns and prefills are refused by the gate, the rest answered."""
    from trimtab.chat import Chat
    from trimtab.config import load
    from trimtab.evaluation import injection
    from trimtab.schemas import Generation, read_rows

    (tmp_path / "prompts.txt").write_text("How do I whistle?\nWhat is rain?\n", encoding="utf-8")
    record = injection.run(load(injection.InjectionConfig, None, [
        f"output={tmp_path / 'out'}", f"prompts={tmp_path / 'prompts.txt'}", "engine.type=openai",
        f"engine.base_url={url}", "engine.model=trimtab", "engine.configurations=safety", "engine.max_retries=0",
        f"tokenizer={tiny_model}", "max_tokens=4",
    ]))  # fmt: skip
    forged = {"system turn by the model's own template", "system turn as ChatML writes it"}
    attacks = record.results["attacks"]
    prefills = {name for name, found in attacks.items() if found["kind"] == "prefill"}
    assert len(prefills) == 2
    assert {name for name, found in attacks.items() if found["num_refused"]} == forged | prefills
    assert (record.counts["refused"], record.counts["errors"]) == (2 * 4, 0)
    chat = Chat.from_folder(str(tiny_model))
    made = {row.id: row for row in read_rows(tmp_path / "out" / "generations", Generation)}
    for row in read_rows(tmp_path / "out" / "plan", PlanRow):
        if row.kind in ("plain", "ceiling"):
            assert made[row.id].num_prompt_tokens == len(chat.prompt_ids(row.system, row.prompt))


def test_taken_port_is_one_clear_line(url: str, tiny_model: Path) -> None:
    port = int(url.split(":")[2].split("/")[0])
    with pytest.raises(InputError, match=rf"port: 127.0.0.1:{port}: can't listen .*; set another port"):
        refuse_taken_port("127.0.0.1", port)


def test_responses_carry_valid_json_for_nested_garbage(url: str) -> None:
    answer = httpx.post(f"{url}/chat/completions", content=b"[" * 50_000, timeout=30)
    assert answer.status_code == 400
    assert json.loads(answer.text)["error"]["type"] == "invalid_request_error"
