"""The progress of a training, read from the files that its workers write."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.artifacts import read_log
from trimtab.console import Progress, polling, say
from trimtab.training.reference import num_scored


@contextlib.contextmanager
def watch(output: Path, num_groups: int) -> Iterator[None]:
    """Show the reference pass, then the steps, while the block runs."""
    with contextlib.ExitStack() as shown:
        reference = shown.enter_context(Progress("reference", num_groups, "groups"))
        training: Progress | None = None
        told = False

        def look() -> None:
            nonlocal training, told
            if not told and (output / "probe.json").is_file():
                told = True
                _tell_form(json.loads((output / "probe.json").read_text(encoding="utf-8")))
            steps = read_log(output / "steps.jsonl")
            if not steps:
                reference.update(num_scored(output / "reference", num_groups))
                return
            if training is None:
                reference.update(num_groups)
                shown.pop_all().close()
                training = shown.enter_context(Progress("training", steps[-1]["steps"], "steps"))
            training.update(len(steps), _note(steps[-10:]))

        with polling(look):
            yield


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
