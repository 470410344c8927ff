"""The serving drill, under constant load: an engine killed, a replica killed, a rolling update, presets reloaded.

Two replicas of the random two-layer model, so that there is always one that can answer. What fails is counted by the
drill that was going on; after a kill, recovery is the time to the last failed request, and ``whole_s`` the time until
both replicas serve again.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.bench._serving import Answer, Side, ask, in_parallel, key_file, placed, sides, tiny_model
from trimtab.console import say
from trimtab.engine import VLLMEngine
from trimtab.policy import keys
from trimtab.serving import ServeConfig

NUM_CLIENTS, MAX_TOKENS, REPLICAS = 8, 16, 2
QUIET_S = 5.0
"""Load before and after each drill."""
WHOLE_S = 600.0  # two starts of an engine, one after the other, where its libraries take a minute to load
ENGINE = VLLMEngine(kv_cache_gib=1, cores_per_actor=1, max_num_seqs=16, max_model_len=1024)
REPLICA, CORE = "ray::ServeReplica:trimtab:trimtab", "EngineCore"
LEAST_CORES = 0.05
PRESETS = "presets:\n  brief: You answer in one sentence, number {number}.\n"


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Failures and seconds of each drill."""
    secrets: dict[str, str] = {}

    def config(side: str, folder: Path) -> ServeConfig:
        secrets.update(key_file(folder / "keys.json", {"bench": keys.Grant(presets=("*",))}))
        (folder / "presets.yaml").write_text(PRESETS.format(number=0), encoding="utf-8")
        return placed(folder, side, model=str(tiny_model(folder)), engine=ENGINE, keys=folder / "keys.json",
                      presets=folder / "presets.yaml", budgets=folder / "budgets.json", min_replicas=REPLICAS,
                      health_check_s=0.5)  # fmt: skip

    with sides(("ours",), config) as running:
        load = Load(running["ours"], secrets["bench"])
        with load:
            drills = {name: load.during(drill) for name, drill in DRILLS.items()}
    for name, drill in drills.items():
        say(f"  {name}: {drill}")
    killed = [drills["engine_killed"], drills["replica_killed"]]
    figures = {
        "rolling_update_failures": drills["rolling_update"]["failures"],
        "reload_failures": drills["reload"]["failures"],
        "recovery_s": max(drill["recovery_s"] for drill in killed),
        "engine_killed_failures": drills["engine_killed"]["failures"],
        "replica_killed_failures": drills["replica_killed"]["failures"],
        "whole_s": max(drill["seconds"] for drill in killed),
    }
    settings = {"clients": NUM_CLIENTS, "max_tokens": MAX_TOKENS, "replicas": REPLICAS, "drills": drills,
                "model": "random two-layer Llama", "engine": ENGINE.model_dump(mode="json"), "requests": load.number,
                "client": "no retries; a failure is a 5xx, a connection that broke or a stream without its end",
                "health_check_s": 0.5}  # fmt: skip
    return figures, settings


class Load:
    """Clients that ask without a pause, in a thread of their own, until the block ends."""

    def __init__(self, side: Side, secret: str) -> None:
        self.side, self.secret = side, secret
        self.number = 0
        self._answers: list[Answer] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        async def until_stopped(session: Any, number: int) -> Answer:
            answer = Answer()
            while not self._stop.is_set():
                self.number += 1
                body = {"model": "trimtab", "messages": [{"role": "user", "content": f"Is it {self.number}?"}],
                        "max_tokens": MAX_TOKENS}  # fmt: skip
                answer = await ask(session, self.side.url, body, self.secret)
                self._answers.append(answer)
                await asyncio.sleep(0.02 if answer.status == 200 else 0.2)
            return answer

        asyncio.run(in_parallel(NUM_CLIENTS, until_stopped, NUM_CLIENTS))

    def during(self, drill: Callable[[Side], None]) -> dict[str, Any]:
        """What came of the requests while something happened, and for a while before and after."""
        first = len(self._answers)
        time.sleep(QUIET_S)
        started = time.monotonic()
        drill(self.side)
        seconds = time.monotonic() - started
        time.sleep(QUIET_S)
        answers = self._answers[first:]
        failed = [answer for answer in answers if answer.status >= 500 or answer.lost]
        return {"failures": len(failed), "requests": len(answers), "seconds": round(seconds, 2),
                "recovery_s": round(max([answer.done - started for answer in failed], default=0.0), 2),
                "refused": sum(answer.status == 429 for answer in answers),
                "such_as": sorted({answer.error for answer in failed})[:4]}  # fmt: skip


def _kill_engine(side: Side) -> None:
    before = _replicas(side)
    side.processes(CORE)[0].kill()
    _wait_until(lambda: _whole(side, before))


def _kill_replica(side: Side) -> None:
    """The replica that works most: one that gets no requests would fail none."""
    before = _replicas(side)
    busy = _busy_cores(side)
    victim = max(busy, key=lambda pid: busy[pid])
    say(f"  replicas keep {sorted(busy.values())} cores busy; kills the busiest")
    assert busy[victim] > LEAST_CORES, f"no replica works: {busy}"
    psutil.Process(victim).kill()
    _wait_until(lambda: _whole(side, before))


def _busy_cores(side: Side, seconds: float = 2.0) -> dict[int, float]:
    """Cores that each replica's process keeps busy, by pid."""
    replicas = side.processes(REPLICA)
    before = [sum(process.cpu_times()[:2]) for process in replicas]
    time.sleep(seconds)
    return {
        process.pid: round((sum(process.cpu_times()[:2]) - used) / seconds, 3)
        for process, used in zip(replicas, before, strict=True)
    }


def _update(side: Side) -> None:
    """Another setting of the gate, which makes every replica start anew; then the old ones drain and go."""
    before = _replicas(side)
    gate = side.config.gate.model_copy(update={"default_max_tokens": side.config.gate.default_max_tokens - 1})
    side.config = side.config.model_copy(update={"gate": gate})
    side.deploy(side.config)
    _wait_until(lambda: not _replicas(side) & before)


def _reload(side: Side) -> None:
    """Presets that change three times while requests go on; no replica may start anew."""
    before = _replicas(side)
    assert side.config.presets is not None
    for number in range(1, 4):
        side.config.presets.write_text(PRESETS.format(number=number), encoding="utf-8")
        side.deploy(side.config)
        time.sleep(1)
    assert _replicas(side) == before, "a reload restarted a replica"


DRILLS: dict[str, Callable[[Side], None]] = {
    "reload": _reload, "rolling_update": _update, "engine_killed": _kill_engine, "replica_killed": _kill_replica,
}  # fmt: skip


def _replicas(side: Side) -> set[int]:
    return {process.pid for process in side.processes(REPLICA)}


def _whole(side: Side, before: set[int]) -> bool:
    """Whether as many replicas run as before, one of them new, each with an engine that answers its health check."""
    now = _replicas(side)
    return len(now) == REPLICAS and now != before and _healthy(side) == REPLICAS


def _healthy(side: Side) -> int:
    """Replicas that HAProxy sends requests to, by what the replicas' own ports say."""
    import httpx

    found = 0
    for process in side.processes(REPLICA):
        for connection in process.net_connections("tcp"):
            if connection.status == "LISTEN" and connection.laddr.ip == "127.0.0.1":
                try:
                    found += (
                        httpx.get(f"http://127.0.0.1:{connection.laddr.port}/-/healthz", timeout=2).text == "success"
                    )
                except httpx.HTTPError:
                    continue
    return found


def _wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WHOLE_S
    while not true():
        assert time.monotonic() < deadline, f"not within {WHOLE_S} s"
        time.sleep(0.25)
