"""The progress of a training, read from the files that its workers write."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.console import Progress, say
from trimtab.training.reference import num_scored

POLL_S = 1.0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A log of steps, each step once: after a resume the later line of a step counts; torn lines are left out."""
    if not path.is_file():
        return []
    found = [_parsed(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = {step["step"]: step for step in found if step is not None}
    return [steps[number] for number in sorted(steps)]


def _parsed(line: str) -> dict[str, Any] | None:
    """A line of the log, or None for one that a kill or a full disk tore."""
    try:
        return dict(json.loads(line))
    except ValueError:
        return None


@contextlib.contextmanager
def watch(output: Path, num_groups: int) -> Iterator[None]:
    """Show the reference pass, then the steps, while the block runs."""
    stop = threading.Event()

    def poll(reference: Progress) -> None:
        training, told = None, False
        while not stop.wait(POLL_S):
            if not told and (output / "probe.json").is_file():
                told = True
                _tell_form(json.loads((output / "probe.json").read_text(encoding="utf-8")))
            steps = read_lines(output / "steps.jsonl")
            if not steps:
                reference.update(num_scored(output / "reference", num_groups))
                continue
            if training is None:
                reference.update(num_groups)
                reference.__exit__()
                training = Progress("training", steps[-1]["steps"], "steps").__enter__()
            training.update(len(steps), _note(steps[-10:]))
        if training is not None:
            training.update(len(read_lines(output / "steps.jsonl")))
            training.__exit__()

    with Progress("reference", num_groups, "groups") as progress:
        thread = threading.Thread(target=poll, args=(progress,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _tell_form(probe: dict[str, Any]) -> None:
    """Say so where this architecture can't be scored as a trie."""
    if probe["form"] != "trie" and "trie" in probe["errors"]:
        error = probe["errors"]["trie"]
        say(f"  this architecture can't score a token trie (mean error {error:.3g} nats a token): "
            f"each group is computed as whole sequences ({probe['form']}), which is slower")  # fmt: skip


def _note(steps: list[dict[str, Any]]) -> str:
    rate = sum(step["tokens"] for step in steps) / max(1e-9, sum(step["seconds"] for step in steps))
    loss, right = (sum(step[name] for step in steps) / len(steps) for name in ("dpo_loss", "accuracy"))
    return f"loss {loss:.3f}, pairs right {right:.0%}, {rate:.0f} tokens/s"
