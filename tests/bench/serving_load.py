"""2,000 streaming requests from 64 clients that leave, read slowly, and ask for what they may not have.

The model is the random two-layer one: what is looked at are configurations, refusals and ends, not texts. An answer's
configuration is checked by its header and by the prompt's tokens, which differ between the configurations.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench._serving import Answer, ask, in_parallel, key_file, placed, sides, tiny_model
from trimtab.chat import Chat
from trimtab.console import say
from trimtab.engine import VLLMEngine
from trimtab.policy import keys
from trimtab.safety import SafetyConfig
from trimtab.serving import ServeConfig

NUM_REQUESTS, NUM_CLIENTS, MAX_TOKENS = 2000, 64, 24
TRIES, MOST_WAIT_S = 8, 1.0
"""A refused client comes back so often, after the time that it is told or this one, whichever is shorter."""
MAX_ONGOING = 48
"""Fewer than the clients, so that the gate has something to refuse."""
ENGINE = VLLMEngine(kv_cache_gib=1, cores_per_actor=1, max_num_seqs=32, max_model_len=1024)
SETTINGS = ("harmless", "uncensored", "honest", "role_play")
PERSONA = "an old sailor who answers in the language of the sea and is polite to everybody"
GRANTS = {
    "all": keys.Grant(presets=("*",)),
    "harmless": keys.Grant(),
    "two": keys.Grant(presets=("harmless", "honest"), default="honest", parallel=16),
    "counted": keys.Grant(presets=("*",), requests_per_minute=120),
}
PROMPT = "Tell me about a market on a Sunday morning, number"


@dataclass(frozen=True)
class Wish:
    """What one request asks for, and what must come of it."""

    key: str
    preset: str | None
    by_alias: bool
    leave_after: int | None
    pause_s: float

    @property
    def expected(self) -> str | None:
        """The preset that must be applied; None: the key doesn't have it."""
        preset = self.preset or GRANTS[self.key].default or "harmless"
        return preset if GRANTS[self.key].allows(preset) else None

    def body(self, number: int) -> dict[str, Any]:
        prompt = [{"role": "user", "content": f"{PROMPT} {number:05d}"}]
        body: dict[str, Any] = {"model": "trimtab", "messages": prompt, "max_tokens": MAX_TOKENS,
                                "stream_options": {"include_usage": True}}  # fmt: skip
        if self.preset == "role_play":
            body["safety"] = {"preset": "role_play", "persona": PERSONA}
        elif self.preset and self.by_alias:
            body["model"] = f"trimtab+{self.preset}"
        elif self.preset:
            body["safety"] = self.preset
        return body


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Counts over all requests."""
    secrets: dict[str, str] = {}
    made: dict[str, Path] = {}

    def config(side: str, folder: Path) -> ServeConfig:
        secrets.update(key_file(folder / "keys.json", GRANTS))
        made["model"] = tiny_model(folder)
        return placed(folder, side, model=str(made["model"]), engine=ENGINE, keys=folder / "keys.json",
                      audit=folder / "audit.jsonl", budgets=folder / "budgets.json",
                      max_ongoing_requests=MAX_ONGOING)  # fmt: skip

    rng = random.Random(6)
    wishes = [_wish(rng) for _ in range(NUM_REQUESTS)]
    results: list[tuple[int, Wish, Answer]] = []
    with sides(("ours",), config) as running:
        lengths = _prompt_lengths(made["model"])

        async def one(session: Any, number: int) -> Answer:
            wish, answer = wishes[number], Answer()
            for _ in range(TRIES):
                answer = await ask(session, running["ours"].url, wish.body(number), secrets[wish.key],
                                   wish.leave_after, wish.pause_s)  # fmt: skip
                results.append((number, wish, answer))
                if answer.status != 429:
                    break
                await asyncio.sleep(min(MOST_WAIT_S, float(answer.headers.get("retry-after", "0"))))
            return answer

        asyncio.run(in_parallel(NUM_CLIENTS, one, NUM_REQUESTS))
    answers = [answer for _, _, answer in results]
    wrong = [(wish, answer) for number, wish, answer in results if _is_wrong(number, wish, answer, lengths)]
    lost = [answer for answer in answers if answer.lost]
    for problem in [*wrong, *lost][:3]:
        say(f"  {problem}")
    statuses = Counter(answer.status for answer in answers)
    figures = {
        "wrong_configuration": len(wrong), "lost": len(lost),
        "http_5xx": sum(count for status, count in statuses.items() if status >= 500),
    }  # fmt: skip
    settings = {
        "requests": NUM_REQUESTS, "tries": len(answers), "clients": NUM_CLIENTS, "max_tokens": MAX_TOKENS,
        "max_ongoing_requests": MAX_ONGOING,
        "model": "random two-layer Llama", "engine": ENGINE.model_dump(mode="json"),
        "answers_by_status": {str(status): count for status, count in sorted(statuses.items())},
        "left_by_the_client": sum(answer.left for answer in answers),
        "slow_readers": sum(wish.pause_s > 0 for wish in wishes),
        "refusals_without_retry_after": sum(
            answer.status == 429 and "retry-after" not in answer.headers for answer in answers
        ),
        "wrong_configuration": "header, prompt tokens, or a 200 or 403 that the key doesn't have",
    }  # fmt: skip
    return figures, settings


def _wish(rng: random.Random) -> Wish:
    return Wish(
        key=rng.choice(list(GRANTS)),
        preset=rng.choice((None, *SETTINGS)),
        by_alias=rng.random() < 0.5,
        leave_after=rng.randrange(1, MAX_TOKENS) if rng.random() < 0.15 else None,
        pause_s=0.05 if rng.random() < 0.1 else 0.0,
    )


def _prompt_lengths(model: Path) -> dict[str, list[int]]:
    """Tokens of each request's prompt under each configuration."""
    chat = Chat.from_folder(str(model))
    systems = {name: SafetyConfig(preset=name, persona=PERSONA if name == "role_play" else None).render()
               for name in SETTINGS}  # fmt: skip
    return {
        name: [len(chat.prompt_ids(system, f"{PROMPT} {number:05d}")) for number in range(NUM_REQUESTS)]
        for name, system in systems.items()
    }


def _is_wrong(number: int, wish: Wish, answer: Answer, lengths: dict[str, list[int]]) -> bool:
    """Whether an answer has another configuration than was asked for and allowed; a 429 has none."""
    expected = wish.expected
    if answer.status in (0, 429):
        return False
    if expected is None or answer.status != 200:
        return answer.status != (403 if expected is None else 200)
    counted = answer.usage.get("prompt_tokens", lengths[expected][number])
    return answer.headers.get("x-trimtab-safety") != expected or counted != lengths[expected][number]
