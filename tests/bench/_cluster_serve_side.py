"""Serve replicas under load on a cluster without workers: they, and the nodes below them, come and go."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench._cluster_fake import free_ports, workers
from tests.bench._cluster_scaling_side import ENGINE_CPUS, Nodes
from trimtab import cluster
from trimtab.cluster import RayConfig
from trimtab.console import quiet

REPLICAS, CLIENTS, ANSWER_S, LIMIT_S = 3, 24, 0.2, 120.0


def replica() -> Any:
    """A deployment whose replicas follow the load from none to three; each fills most of a node, as an engine would."""
    from ray import serve

    follow = {"min_replicas": 0, "max_replicas": REPLICAS, "target_ongoing_requests": 4, "upscale_delay_s": 1,
              "downscale_delay_s": 3, "downscale_to_zero_delay_s": 3}  # fmt: skip

    @serve.deployment(autoscaling_config=follow, max_ongoing_requests=16, ray_actor_options={"num_cpus": ENGINE_CPUS})
    class Answering:
        async def __call__(self) -> str:
            await asyncio.sleep(ANSWER_S)
            return "answered"

    return Answering


async def loaded(url: str) -> dict[str, int]:
    """Ask without a pause until there are as many nodes as replicas may be; how many answers were what."""
    import httpx

    enough, answers = asyncio.Event(), {"answered": 0, "failed": 0}

    async def ask(client: httpx.AsyncClient) -> None:
        while not enough.is_set():
            answer = await client.get(url)
            answers["answered" if answer.status_code == 200 else "failed"] += 1

    async def watch() -> None:
        deadline = time.monotonic() + LIMIT_S
        while len(workers()) < REPLICAS and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        await asyncio.sleep(5)  # so that the last replica has answered as well
        enough.set()

    async with httpx.AsyncClient(timeout=LIMIT_S, trust_env=False) as client:
        await asyncio.gather(watch(), *(ask(client) for _ in range(CLIENTS)))
    return answers


def main() -> None:
    """JSON arguments: ``address``, ``folder``, ``down_s``."""
    from ray import serve

    given = json.loads(sys.argv[1])
    (port,) = free_ports(1)
    with quiet(Path(given["folder"]) / "noise"):
        cluster.connect(RayConfig(address=given["address"]))
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        serve.run(replica().bind(), name="drill", route_prefix="/")
        up = Nodes()
        answers = asyncio.run(loaded(f"http://127.0.0.1:{port}/"))
        up.stop()
        down = Nodes()
        deadline = time.monotonic() + given["down_s"]
        while workers() and time.monotonic() < deadline:
            time.sleep(0.1)
        left = len(workers())
        down.stop()
        serve.shutdown()
        cluster.disconnect()
    print(json.dumps({"nodes": up.changes, "answers": answers, "left": left,
                      "down": down.changes}))  # fmt: skip


if __name__ == "__main__":
    main()
