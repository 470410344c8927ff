"""One real Ray for all slow tests, with a temporary folder and ports of its own."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from trimtab.engine import VLLMEngine, engine_env

LONGEST = ("test_training", "test_pipeline", "test_serving", "test_engine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that no process is left with one of them when the others are done.

    Warnings of Ray, vLLM and their kin are theirs; ours stay errors.
    """
    items.sort(key=_turn)
    for item in items:
        if "slow" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
            item.add_marker(pytest.mark.filterwarnings(r"error:::trimtab\..*"))


def _turn(item: pytest.Item) -> int:
    if "slow" not in item.path.parts:
        return len(LONGEST) + 1
    return LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST)


@pytest.fixture(autouse=True, scope="module")
def _leftovers_go_here() -> Iterator[None]:
    """What libraries leave open is found while their warnings are ignored, not in a test of ours that comes later."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A local Ray that ends with the session."""
    # Ray's socket paths must stay below 107 characters, so its folder can't lie below pytest's.
    import tempfile

    from trimtab import cluster

    with tempfile.TemporaryDirectory(prefix="tt-", ignore_cleanup_errors=True) as folder:
        cluster.connect(cluster.RayConfig(temp_dir=Path(folder)))
        yield
        cluster.disconnect()


@pytest.fixture
def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def vllm_server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the tiny model as ``tiny``."""
    with serve(tiny_model, "tiny", tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@contextlib.contextmanager
def serve(model: Path, name: str, log: Path) -> Iterator[str]:
    """vLLM's own OpenAI-compatible server with a model under this name; its address, ending in /v1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
               "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024",
               "--max-num-seqs", "16", "--enforce-eager", "--disable-uvicorn-access-log"]  # fmt: skip
    env = os.environ | engine_env(VLLMEngine(kv_cache_gib=1, cores_per_actor=1))
    with log.open("wb") as sink:
        server = subprocess.Popen(command, env=env, stdout=sink, stderr=sink, start_new_session=True)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        assert server.poll() is None, log.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.5)
    raise AssertionError("the server never answered")


def sample_rows(num: int) -> list[dict[str, Any]]:
    """The first rows of the shipped sample."""
    from trimtab.sources import SourceConfig

    lines = SourceConfig().path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:num]]


@pytest.fixture(scope="session")
def small_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows of the shipped sample as a file of their own."""
    path = tmp_path_factory.mktemp("source") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sample_rows(12)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def ranked_groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished synthesis output: groups of six of twelve sample requests and their flips, with one written turn."""
    from trimtab.artifacts import Outcome, run_stage
    from trimtab.safety import SafetyConfig
    from trimtab.schemas import Generation, RankedGroup, group_file, write_rows
    from trimtab.sources import read_requests
    from trimtab.synthesis.config import SynthesisConfig
    from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe, build_group, draft, keep, plan_rows

    recipe = CourseCorrectionRecipe(safe_response="source")
    turn = " this would hurt someone, and I would rather help you to talk to them."
    groups = []
    for request in [request for request in read_requests(recipe.source)[0] if keep(request, recipe)][:12]:
        item = draft(request, recipe)
        made = {row.kind: Generation(id=row.id, text=turn, num_prompt_tokens=1, num_tokens=9)
                for row in plan_rows(item, recipe)}  # fmt: skip
        groups.append(build_group(item, made, recipe))
    flips = [group.flip("uncensored", SafetyConfig(preset="uncensored").render()) for group in groups]

    def work(output: Path) -> Outcome:
        return Outcome(counts={"groups": write_rows(group_file(output), RankedGroup, [*groups, *flips])})

    folder = tmp_path_factory.mktemp("ranked") / "groups"
    run_stage("synthesize", folder, SynthesisConfig(output=folder), {}, work)
    return folder


def has_checkpoint(output: Path) -> bool:
    """Whether Ray Train has committed a checkpoint of a training that is still running."""
    snapshot = output / "ray" / "checkpoint_manager_snapshot.json"
    return snapshot.is_file() and "checkpoint-0" in snapshot.read_text(encoding="utf-8")


def restarted_at(output: Path) -> int:
    """The step at which an interrupted training went on: where its log steps back; 1 would be from the beginning."""
    steps = [json.loads(line)["step"] for line in (output / "steps.jsonl").read_text(encoding="utf-8").splitlines()]
    back = [now for before, now in pairwise(steps) if now <= before]
    assert len(back) <= 1, f"it was interrupted {len(back)} times"
    return back[0] if back else steps[-1]
