"""The endpoint for real: Ray Serve, HAProxy, vLLM and the gate inside the replica, asked by the OpenAI SDK."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.ports import serving_port
from trimtab.config import InputError
from trimtab.engine import OpenAIEngine, VLLMEngine, generate
from trimtab.policy import keys
from trimtab.safety import SafetyConfig
from trimtab.schemas import PlanRow
from trimtab.serving import ServeConfig, refuse_taken_port, running
from trimtab.serving.running import deploy

pytestmark = pytest.mark.slow

REPLICA = "ray::ServeReplica:trimtab:trimtab"

USER = [{"role": "user", "content": "How can I skip the queue at the bakery?"}]
PATIENT_S = 120


@dataclass(frozen=True)
class Served:
    """The endpoint, and the secrets of its keys by what they may do."""

    url: str
    config: ServeConfig
    secrets: dict[str, str]

    def headers(self, key: str = "both") -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets[key]}"}

    def post(self, key: str = "both", **body: object) -> httpx.Response:
        given = {"model": "trimtab", "max_tokens": 8, "messages": USER, **body}
        return httpx.post(f"{self.url}/chat/completions", json=given, headers=self.headers(key), timeout=PATIENT_S)


@pytest.fixture(scope="module")
def served(tiny_model: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serving")
    grants = {
        "both": keys.Grant(presets=("*",)),
        "harmless": keys.Grant(),
        "honest": keys.Grant(presets=("harmless", "honest"), default="honest"),
        "slow": keys.Grant(requests_per_minute=2),
    }
    secrets = {name: keys.create(folder / "keys.json", grant, name)[1] for name, grant in grants.items()}
    _add_what_workers_send(folder / "keys.json")
    (folder / "presets.yaml").write_text("presets: {}\n", encoding="utf-8")
    config = ServeConfig(
        model=str(tiny_model), port=serving_port(), keys=folder / "keys.json", presets=folder / "presets.yaml",
        audit=folder / "audit.jsonl", budgets=folder / "budgets.json", health_check_s=0.5,
        engine=VLLMEngine(max_num_seqs=16, kv_cache_gib=1, cores_per_actor=1),
    )  # fmt: skip
    with running(config) as url:
        yield Served(url, config, secrets)


def test_models_and_safety_list_what_the_key_may_use(served: Served) -> None:
    def ids(key: str) -> set[str]:
        return {row["id"] for row in httpx.get(f"{served.url}/models", headers=served.headers(key)).json()["data"]}

    assert ids("harmless") == {"trimtab", "trimtab+harmless"}
    assert ids("honest") == {"trimtab", "trimtab+harmless", "trimtab+honest"}
    assert {"trimtab", "trimtab+uncensored"} < ids("both")
    safety = httpx.get(f"{served.url}/safety", headers=served.headers("honest")).json()
    assert (safety["default"], [row["name"] for row in safety["data"]]) == ("honest", ["harmless", "honest"])


@pytest.mark.parametrize(
    ("key", "body", "applied"),
    [
        ("both", {}, "harmless"),
        ("both", {"safety": "uncensored"}, "uncensored"),
        ("both", {"model": "trimtab+honest"}, "honest"),
        ("honest", {}, "honest"),
        ("both", {"safety": {"preset": "role_play", "persona": "a baker"}}, "role_play"),
    ],
)
def test_body_alias_or_key_choose_the_configuration(
    served: Served, tiny_model: Path, key: str, body: dict[str, object], applied: str
) -> None:
    """And the prompt is that of the one renderer: the counts of ids agree."""
    from trimtab.chat import Chat

    answer = served.post(key, **body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-trimtab-safety"] == applied
    assert answer.json()["choices"][0]["message"]["content"]
    system = SafetyConfig(preset=applied, persona="a baker" if applied == "role_play" else None).render()
    expected = Chat.from_folder(str(tiny_model)).prompt_ids(system, USER[0]["content"])
    assert answer.json()["usage"]["prompt_tokens"] == len(expected)


def test_streaming_through_the_sdk(served: Served) -> None:
    from openai import OpenAI

    with OpenAI(base_url=served.url, api_key=served.secrets["both"]) as client:
        stream = client.chat.completions.create(
            model="trimtab", messages=USER, max_tokens=8, stream=True, extra_body={"safety": "uncensored"}
        )
        assert stream.response.headers["x-trimtab-safety"] == "uncensored"
        chunks = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(chunks) > 1


def test_who_may_not_is_refused_in_openais_format(served: Served) -> None:
    unknown = httpx.post(f"{served.url}/chat/completions", json={"messages": USER}, timeout=30)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (401, "invalid_key")
    assert served.post("harmless", safety="uncensored").status_code == 403
    assert served.post("harmless", model="trimtab+uncensored").status_code == 403
    answer = served.post(safety="root")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "safety.preset")
    answer = served.post(model="other")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")


def test_limits_are_held_by_the_actor_and_named_in_a_429(served: Served) -> None:
    answers = [served.post("slow", max_tokens=1) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert answers[2].json()["error"]["code"] == "requests_per_minute"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60


def test_a_dead_limiter_denies_and_is_started_again(served: Served) -> None:
    import ray

    from trimtab.serving.limits import NAMESPACE

    ray.kill(ray.get_actor("limits:trimtab", namespace=NAMESPACE))
    assert served.post(max_tokens=1).status_code == 503
    _wait_for(lambda: served.post(max_tokens=1).status_code == 200, 30)


def test_other_routes_and_cors_are_not_served(served: Served) -> None:
    root = served.url.removesuffix("/v1")
    for path in ("/v1/completions", "/tokenize", "/docs", "/openapi.json", "/v1/embeddings", "/metrics"):
        answer = httpx.post(root + path, json={}, headers=served.headers(), timeout=30)
        assert answer.status_code == 404, path
    answer = httpx.get(
        f"{served.url}/models", headers={**served.headers(), "Origin": "http://elsewhere.example"}, timeout=30
    )
    assert "access-control-allow-origin" not in answer.headers
    assert "text/html" in httpx.get(root, timeout=30).headers["content-type"]


def test_nested_garbage_is_a_400_with_valid_json(served: Served) -> None:
    answer = httpx.post(
        f"{served.url}/chat/completions", content=b"[" * 50_000, timeout=30,
        headers={**served.headers(), "Content-Type": "application/json"},
    )  # fmt: skip
    assert answer.status_code == 400
    assert json.loads(answer.text)["error"]["type"] == "invalid_request_error"


def test_endpoint_engine_makes_every_row_and_reports_refusals(served: Served, tmp_path: Path) -> None:
    """The second engine against our own served model: plain rows succeed, a prefilled one is refused by the gate."""
    plan = [PlanRow(id=f"r{i}", request_id="q", kind="SR", prompt=USER[0]["content"] + "?" * i, max_tokens=4)
            for i in range(5)]  # fmt: skip
    plan.append(PlanRow(id="open", request_id="q", kind="SYN", prompt="Hello", prefill="Sure,", max_tokens=4))
    engine = OpenAIEngine(base_url=served.url, model="trimtab", max_retries=0)
    made = generate(plan, tmp_path / "made", None, engine, "endpoint")
    assert [row.id for row in made] == [row.id for row in plan]
    assert all(row.text and row.num_tokens and not row.error for row in made[:5])
    assert made[5].error


def test_callers_are_measured_through_the_gate(served: Served, tiny_model: Path, tmp_path: Path) -> None:
    """Each configuration is asked for by name; forged turns and prefills are refused by the gate, the rest answered."""
    from trimtab.chat import Chat
    from trimtab.config import load
    from trimtab.evaluation import injection
    from trimtab.schemas import Generation, read_rows

    (tmp_path / "prompts.txt").write_text("How do I whistle?\nWhat is rain?\n", encoding="utf-8")
    record = injection.run(load(injection.InjectionConfig, None, [
        f"output={tmp_path / 'out'}", f"prompts={tmp_path / 'prompts.txt'}", "engine.type=openai",
        f"engine.base_url={served.url}", "engine.model=trimtab", "engine.configurations=safety", "engine.max_retries=0",
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


def test_taken_port_is_one_clear_line(served: Served) -> None:
    with pytest.raises(InputError, match=rf"port: 127.0.0.1:{served.config.port}: can't listen .*; set another port"):
        refuse_taken_port("127.0.0.1", served.config.port)


def test_presets_change_without_a_restart(served: Served) -> None:
    before = _replica().pid
    assert served.config.presets
    served.config.presets.write_text("presets:\n  brief: You answer in one sentence.\n", encoding="utf-8")
    deploy(served.config)
    _wait_for(lambda: served.post(safety="brief", max_tokens=1).status_code == 200, 20)
    assert _replica().pid == before


def test_audit_log_says_who_and_what_and_never_a_text(served: Served) -> None:
    assert served.config.audit
    text = served.config.audit.read_text(encoding="utf-8")
    events = [json.loads(line) for line in text.splitlines()]
    assert {"both", "harmless", "-"} <= {event["key_id"] for event in events}
    assert {"allowed", "invalid_key", "requests_per_minute"} <= {event["decision"] for event in events}
    assert "bakery" not in text
    assert not any(secret in text for secret in served.secrets.values())


@pytest.mark.drill
def test_a_dead_engine_is_noticed_and_replaced(served: Served) -> None:
    """The last test of this file: what it costs is a start of the engine."""
    before = _replica()
    engine = [child for child in before.children(recursive=True) if "EngineCore" in _command(child)]
    assert engine, before.children(recursive=True)
    engine[0].kill()
    _wait_for(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE, 60)
    assert served.post(max_tokens=1).status_code == 200, "it waits for the new replica"


def _add_what_workers_send(path: Path) -> None:
    """A key for Ray's workers, whose environment has none: they send the word for that."""
    ring = keys.read(path)
    key = keys.Key(id="workers", sha256=hashlib.sha256(b"none").hexdigest(), presets=("*",))
    path.write_text(ring.model_copy(update={"keys": (*ring.keys, key)}).model_dump_json(), encoding="utf-8")


def _replica() -> psutil.Process:
    """The process of the one engine replica, below this process, which started Ray."""
    found = [process for process in psutil.Process().children(recursive=True) if REPLICA in _command(process)]
    assert len(found) == 1, found
    return found[0]


def _command(process: psutil.Process) -> str:
    """What a process was started as; nothing of one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _wait_for(true: object, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.25)
