"""Verdicts on many texts by any judge: prompts, the cache, the judge's own way of asking, and strict reading."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trimtab import registry
from trimtab.cluster import RayConfig
from trimtab.console import say
from trimtab.judging.cache import AnswerCache
from trimtab.judging.config import JudgeConfig, OpenAIJudge, RulesJudge, VLLMJudge
from trimtab.judging.endpoint import ask_endpoint, require_key
from trimtab.judging.local import ask_engine
from trimtab.judging.prompts import render, template
from trimtab.judging.questions import Item, Judged, Question, Reply, judged
from trimtab.judging.rules import judged_by_rules


def judge_all(
    items: Sequence[Item], question: Question, judge: JudgeConfig, label: str, ray: RayConfig | None = None,
    folder: Path | None = None,
) -> list[Judged]:  # fmt: skip
    """A verdict on each item, in order. What the cache holds is not asked again.

    Args:
        label: the name of the progress line.
        ray: which Ray a vllm judge uses; none: the default one.
        folder: where a vllm judge keeps its answers, so that an interrupted run goes on; none: a temporary one.

    Raises:
        InputError: the judge can't be used: wrong key, unknown model, nobody there, a text without its slots.
    """
    if isinstance(judge, RulesJudge):
        return [judged_by_rules(item, question, judge) for item in items]
    text, answer_id = template(question, judge.prompts), judge.answer_ids()
    prompts = [render(text, item) for item in items]
    ids = [answer_id(prompt) for prompt in prompts]
    replies = _replies(dict(zip(ids, prompts, strict=True)), judge, label, ray or RayConfig(), folder)
    return [judged(item, question, replies[i]) for item, i in zip(items, ids, strict=True)]


def _replies(
    prompts: Mapping[str, str], judge: OpenAIJudge | VLLMJudge, label: str, ray: RayConfig, folder: Path | None
) -> dict[str, Reply]:
    with AnswerCache(judge.cache or registry.home() / "judge-cache") as cache:
        known = {answer_id: Reply(raw) for answer_id, raw in cache.find(prompts).items()}
        todo = {answer_id: prompt for answer_id, prompt in prompts.items() if answer_id not in known}
        if known:
            say(f"  {label}: {len(known)} of {len(prompts)} answers of {judge.description} are in the cache")
        if not todo:
            return known
        if isinstance(judge, OpenAIJudge):
            return known | ask_endpoint(todo, judge, cache.put, label)
        with _folder(folder) as place:
            return known | ask_engine(todo, judge, cache.put, label, ray, place)


def require_usable(judge: JudgeConfig) -> None:
    """Raise, before anything is generated for it, where this judge could not be asked.

    Raises:
        InputError: its key is missing.
    """
    if isinstance(judge, OpenAIJudge):
        require_key(judge)


@contextlib.contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="trimtab-judge-") as place:
        yield Path(place)
