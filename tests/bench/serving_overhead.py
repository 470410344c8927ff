"""Streaming requests a second through our app, bare ray.serve.llm, the same app without gate, and vLLM's server.

The model is a random Llama of such a size that a core of an AVX2 machine makes with it about as many tokens a second as
it makes with SmolLM2-135M in bfloat16 where there is AVX-512: the machine for which the aims were set.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

from tests.bench._gate_latency import added_latency_ms
from tests.bench._serving import Answer, Side, ask, in_parallel, key_file, placed, sides, tiny_model
from trimtab.console import say
from trimtab.engine import VLLMEngine
from trimtab.policy import keys
from trimtab.safety import SafetyConfig
from trimtab.serving import ServeConfig

SIZE = {"num_heads": 9, "num_layers": 4}
SIDES = ("ours", "ungated", "bare_ray_serve", "vllm_server")
NUM_ROUNDS, NUM_REQUESTS, NUM_CLIENTS, MAX_TOKENS = 5, 200, 32, 32
NUM_WARM_UP = 32
ENGINE = VLLMEngine(kv_cache_gib=1, cores_per_actor=1, max_num_seqs=64, max_model_len=1024)
GRANT = keys.Grant(
    presets=("*",), requests_per_minute=100_000, tokens_per_minute=10**9, parallel=1000, tokens_per_day=10**10
)
TOPICS = (
    "a river",
    "a lighthouse",
    "a train ride",
    "a market",
    "the first snow",
    "an old clock",
    "a garden",
    "a bridge",
)


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """The ratios of the medians over the rounds, and each round's own."""
    latency = added_latency_ms()
    secrets: dict[str, str] = {}
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    tokens: dict[str, list[float]] = {side: [] for side in SIDES}

    def config(side: str, folder: Path) -> ServeConfig:
        if side == "ours":
            tiny_model(folder, **SIZE)
            secrets.update(key_file(folder / "keys.json", {"bench": GRANT}))
        ours = {"keys": folder / "keys.json", "audit": folder / "audit.jsonl", "budgets": folder / "budgets.json"}
        return placed(folder, side, model=str(folder / "model"), engine=ENGINE, **(ours if side == "ours" else {}))

    idle: dict[str, float] = {}
    with sides(SIDES, config) as running:
        for side in running.values():
            measured(side, secrets, -1, NUM_WARM_UP)
        idle = idle_cores(running)
        for number in range(NUM_ROUNDS):
            for name in (*SIDES[number % len(SIDES) :], *SIDES[: number % len(SIDES)]):
                rate, per_answer = measured(running[name], secrets, number, NUM_REQUESTS)
                rates[name].append(rate)
                tokens[name].append(per_answer)
                say(f"  round {number + 1}: {name}: {rate:.2f} requests/s, {per_answer:.1f} tokens each")
    figures = {
        f"requests_per_s_vs_{side}": _ratio(rates, side) for side in ("bare_ray_serve", "ungated", "vllm_server")
    }
    settings = {
        "model": {"random Llama": SIZE}, "engine": ENGINE.model_dump(mode="json"), "rounds": NUM_ROUNDS,
        "requests": NUM_REQUESTS,
        "clients": NUM_CLIENTS, "max_tokens": MAX_TOKENS, "requests_per_s": rates, "tokens_per_answer": tokens,
        "ratios_by_round": {
            side: [ours / theirs for ours, theirs in zip(rates["ours"], rates[side], strict=True)] for side in SIDES[1:]
        },
        "idle_cores": idle, "executor": "mp on every side",
        "ours": "gate, one key with every limit set, limits in the actor, audit log",
    }  # fmt: skip
    return {**figures, "added_latency_ms": latency["median"]}, settings | {"added_latency": latency}


def _ratio(rates: dict[str, list[float]], side: str) -> float:
    return statistics.median(rates["ours"]) / statistics.median(rates[side])


def measured(side: Side, secrets: dict[str, str], number: int, num_requests: int) -> tuple[float, float]:
    """(Requests a second, tokens of an answer) of one round; prompts are the same on every side, and new each round."""
    ours = side.side == "ours"
    system = [] if ours else [{"role": "system", "content": SafetyConfig().render()}]

    async def one(session: Any, index: int) -> Answer:
        topic = TOPICS[index % len(TOPICS)]
        prompt = f"Write a long story about {topic}, with {index + 3} people in it. It is story {number + 2}."
        body = {"model": "trimtab", "messages": [*system, {"role": "user", "content": prompt}], "temperature": 0,
                "max_tokens": MAX_TOKENS, "stream_options": {"include_usage": True}}  # fmt: skip
        return await ask(session, side.url, body, secrets["bench"] if ours else None)

    started = time.perf_counter()
    answers = asyncio.run(in_parallel(NUM_CLIENTS, one, num_requests))
    seconds = time.perf_counter() - started
    wrong = [answer for answer in answers if answer.status != 200 or not answer.ended]
    assert not wrong, f"{len(wrong)} requests failed, such as {wrong[0]}; {side.end_of_log()}"
    tokens = sum(answer.usage["completion_tokens"] for answer in answers)
    return num_requests / seconds, tokens / num_requests


def idle_cores(running: dict[str, Side], seconds: float = 5.0) -> dict[str, float]:
    """Cores that each side keeps busy while nobody asks."""
    before = {name: side.cpu_s() for name, side in running.items()}
    time.sleep(seconds)
    return {name: (side.cpu_s() - before[name]) / seconds for name, side in running.items()}
