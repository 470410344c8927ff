"""Runs the examples of ``serve/examples`` as their users do, against any endpoint, and checks what they print."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "serve" / "examples"
HEADER = "x-trimtab-safety: "
TIMEOUT_S = 180
RUNS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("openai_sync.py", ("uncensored",), ("uncensored",)),
    ("openai_async.py", ("uncensored", "harmless"), ("harmless", "uncensored")),
    ("openai_stream.py", ("a quiet baker",), ("role_play",)),
    ("model_alias.py", ("honest",), ("honest",)),
    ("curl.sh", ("uncensored",), ("uncensored",)),
    ("curl.sh", (), ("harmless",)),
)
"""An example, its arguments, and the configurations that the server must then say it applied, sorted."""


def run_examples(base_url: str, key: str, model: str = "trimtab") -> None:
    """Run every example; the key must be allowed to choose all of the built-in configurations.

    Args:
        base_url: the API's, which ends with ``/v1``.

    Raises:
        AssertionError: one fails, answers nothing, or was answered under another configuration than it asked for.
    """
    environment = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": key, "OPENAI_MODEL": model}
    with ThreadPoolExecutor(2) as pool:
        done = [(run, pool.submit(run_example, run[0], run[1], environment)) for run in RUNS]
    for (name, _, applied), result in done:
        printed = result.result()
        assert key not in printed, f"{name} prints the key"
        headers = [line.removeprefix(HEADER) for line in printed.splitlines() if line.startswith(HEADER)]
        assert tuple(sorted(headers)) == applied, f"{name}: {printed}"
        assert printed.partition(HEADER)[0].strip(), f"{name} printed no answer"


def run_example(name: str, arguments: tuple[str, ...], environment: dict[str, str]) -> str:
    """What one example prints.

    Raises:
        AssertionError: it fails.
    """
    program = [sys.executable] if name.endswith(".py") else ["bash"]
    command = [*program, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    return done.stdout
