"""C²-EVAL's released output formats, so that what reads those reads ours (arXiv 2407.16637).

``raw.jsonl`` holds a line for each continuation, ``summary.json`` the list [Corr@k for each k, their mean], and
``judge_log.jsonl`` what a judge was asked and said. All three go k by k, as the released script does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from trimtab.artifacts import write_text
from trimtab.chat import Chat
from trimtab.judging import Item, JudgeConfig, RulesJudge
from trimtab.judging.prompts import render, template
from trimtab.schemas import Generation, PlanRow, Verdict


def write(
    folder: Path, plan: Sequence[PlanRow], made: Sequence[Generation], verdicts: Sequence[Verdict],
    results: dict[str, Any], judge: JudgeConfig, model: Path | None,
) -> None:  # fmt: skip
    """Write the three files; a row whose generation failed is in none of them.

    Args:
        plan: what was to be generated, with what was ``made`` and the ``verdicts`` in the same order.
        results: of ``prefill.summarize``.
        model: the model's folder, whose template renders the prompts; none: an endpoint's, the prompt is the prefill.
    """
    rows = [(row, said) for row, done, said in zip(plan, made, verdicts, strict=True) if not done.error]
    rows.sort(key=lambda pair: int(pair[1].group))
    chat = Chat.from_folder(str(model)) if model else None
    write_text(folder / "raw.jsonl", _lines(_raw(row, verdict, chat) for row, verdict in rows))
    asked = _asked(judge)
    log = ({"prompt": asked(verdict), "response": _said(verdict)} for _, verdict in rows if _said(verdict))
    write_text(folder / "judge_log.jsonl", _lines(log))
    means = [estimate["value"] for estimate in results["corr"].values()]
    write_text(folder / "summary.json", json.dumps([*means, results["corr_mean"]["value"]]) + "\n")


def _raw(row: PlanRow, verdict: Verdict, chat: Chat | None) -> dict[str, Any]:
    """``full response`` is the prompt as the model saw it, ``truly response`` what it wrote behind it."""
    prompt = chat.prompt_text(row.system, row.prompt, row.prefill, row.reopen) if chat else row.prefill
    return {"k": int(verdict.group), "request": row.prompt, "full response": prompt, "truly response": verdict.text}


def _asked(judge: JudgeConfig) -> Callable[[Verdict], str]:
    """A function from a verdict to what the judge read: a model's whole prompt, the rules' text."""
    if isinstance(judge, RulesJudge):
        return lambda verdict: verdict.text
    question = template("course_corrects", judge.prompts)
    return lambda verdict: render(question, Item(verdict.id, verdict.prompt, verdict.text, verdict.prefill))


def _said(verdict: Verdict) -> str:
    """The judge's own words in the released form, the rules' verdict; empty where nothing was said."""
    if verdict.raw is not None:
        return verdict.raw.strip().lower()
    return "" if verdict.verdict == "unparsed" else verdict.verdict


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
