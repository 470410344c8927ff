"""Asking a judge model on this Ray: a plan for the engine, greedy, whose answers stay in a folder and so resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from trimtab import cluster, models
from trimtab.chat import Chat, ControlGuard
from trimtab.cluster import RayConfig
from trimtab.config import InputError
from trimtab.engine import generate
from trimtab.judging.config import VLLMJudge
from trimtab.judging.questions import Reply
from trimtab.schemas import Generation, PlanRow

Keep = Callable[[str, str], None]


def ask_engine(
    prompts: Mapping[str, str], judge: VLLMJudge, keep: Keep, label: str, ray: RayConfig, folder: Path
) -> dict[str, Reply]:
    """Ask each prompt once; prompts that would hold control tokens of the model get an error.

    Args:
        prompts: whole prompts by the id of their answer.
        keep: is given (id, answer) of each answer.
        label: the name of the progress line.
        folder: where the plan and the answers stand.
    """
    model = models.resolve(judge.model)
    replies, plan = {}, []
    for answer_id, prompt in prompts.items():
        try:
            plain = without_control_tokens(str(model), prompt)
        except InputError as error:
            replies[answer_id] = Reply(error=str(error))
        else:
            plan.append(PlanRow(id=answer_id, request_id=answer_id, kind="judge", prompt=plain,
                                max_tokens=judge.max_tokens))  # fmt: skip
    if plan:
        cluster.connect(ray)
    for made in generate(plan, folder, model, judge.engine, label):
        replies[made.id] = _reply(made)
        if not made.error:
            keep(made.id, made.text)
    return replies


def _reply(made: Generation) -> Reply:
    if made.error:
        return Reply(error=made.error[:500])
    return Reply(made.text, None, made.num_prompt_tokens, made.num_tokens)


def without_control_tokens(model: str, prompt: str) -> str:
    """A prompt in which what would be a control token of the model is plain text: a space parts it.

    Raises:
        InputError: a control token can't be told apart so.
    """
    guard = ControlGuard.from_folder(model)
    try:
        guard.refuse("text", prompt)
    except InputError:
        for token in sorted(set(Chat.from_folder(model).control_tokens(prompt)), key=len, reverse=True):
            prompt = prompt.replace(token, f"{token[:1]} {token[1:]}")
        guard.refuse("text", prompt)
    return prompt
