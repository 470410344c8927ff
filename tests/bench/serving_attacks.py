"""Can the switch be turned from outside: every attempt of the corpus, generated bodies, and header tricks over HTTP."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests import tiny
from tests.bench._attacks import GENERATED, Outcome, mutated, run_all
from tests.policy import attacks
from tests.policy.judging import GRAMMARS, variant
from trimtab import models
from trimtab.chat import Chat
from trimtab.console import say

MODEL = "smollm2-135m"
NUM_MUTATED = 300


def run() -> tuple[dict[str, Any], dict[str, Any]]:
    """Attempts, breaches and unhandled ones, over three templates and both modes of the gate."""
    corpus = [*attacks.all_attacks(), *attacks.honest(), *mutated(NUM_MUTATED)]
    whole, each = Outcome(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.save_tokenizer(folder)
        chats = {"chatml": Chat.from_folder(str(models.resolve(MODEL)))}
        chats |= {template: variant(str(folder), GRAMMARS[template]) for template in ("llama3", "gemma")}
        for template, chat in chats.items():
            outcome = run_all(chat, GRAMMARS[template], corpus, GENERATED, raw=template == "chatml")
            each[template] = {"attempts": outcome.attempts, "reached": outcome.reached}
            say(f"  {template}: {outcome.attempts} attempts, {outcome.reached} reached the engine")
            for line in [*outcome.breaches, *outcome.unhandled][:20]:
                say(f"    {line[:200]}")
            whole += outcome
    figures = {"attempts": whole.attempts, "breaches": len(whole.breaches), "unhandled": len(whole.unhandled)}
    settings = {
        "corpus": len(corpus), "generated": GENERATED, "modes": ["strict", "escape"], "templates": each, "model": MODEL,
        "reached": "for what their key holds, or with text made harmless; each was judged by its final ids",
    }  # fmt: skip
    return figures, settings
