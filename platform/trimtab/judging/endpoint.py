"""Asking a judge behind an OpenAI-compatible endpoint; retries, Retry-After and timeouts are the SDK's own.

What no retry can mend (a wrong key, an unknown model, nobody there) stops the run with one line. Any other failure
stays with its verdict, which is unparsed, and is counted.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping
from json import JSONDecodeError
from typing import TYPE_CHECKING, Any

from trimtab.config import InputError
from trimtab.console import Progress, polling, say
from trimtab.engine import NO_COMPLETION, read_completion
from trimtab.judging.config import OpenAIJudge
from trimtab.judging.limit import AdaptiveLimit
from trimtab.judging.questions import Reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAIError

Keep = Callable[[str, str], None]
MOST_FAILURES_IN_A_ROW = 20


def ask_endpoint(prompts: Mapping[str, str], judge: OpenAIJudge, keep: Keep, label: str) -> dict[str, Reply]:
    """Ask each prompt once.

    Args:
        prompts: whole prompts by the id of their answer.
        keep: is given (id, answer) as answers come, so that a run that is stopped has lost none.
        label: the name of the progress line.

    Raises:
        InputError: the endpoint can't be used, or fails again and again.
    """
    calls = _Calls(judge, keep)
    with (
        Progress(label, len(prompts), "verdicts") as progress,
        polling(lambda: progress.update(len(calls.replies), calls.note())),
    ):
        asyncio.run(calls.ask(prompts))
    say(f"  {label}: {calls.summary()}")
    return calls.replies


class _Calls:
    """One run of calls: the replies by id, what they took, and how many may be in flight."""

    def __init__(self, judge: OpenAIJudge, keep: Keep) -> None:
        self.judge, self.keep = judge, keep
        self.limit = AdaptiveLimit(judge.num_concurrent_requests)
        self.replies: dict[str, Reply] = {}
        self.num_prompt_tokens = self.num_tokens = self.num_failed = 0
        self._in_a_row = 0

    async def ask(self, prompts: Mapping[str, str]) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        judge, todo = self.judge, iter(prompts.items())
        http = DefaultAsyncHttpxClient(event_hooks={"response": [self._saw]})
        async with AsyncOpenAI(
            base_url=judge.base_url, api_key=os.environ.get(judge.api_key_env) or "none", timeout=judge.timeout_s,
            max_retries=judge.max_retries, http_client=http,
        ) as client:  # fmt: skip
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(judge.num_concurrent_requests):
                        group.create_task(self._work(client, todo))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None

    async def _saw(self, response: Any) -> None:
        self.limit.saw(response.status_code)

    async def _work(self, client: AsyncOpenAI, todo: Iterator[tuple[str, str]]) -> None:
        for answer_id, prompt in todo:
            async with self.limit:
                reply = await self._reply(client, prompt)
            self._count(answer_id, reply)

    async def _reply(self, client: AsyncOpenAI, prompt: str) -> Reply:
        from openai import OpenAIError

        judge = self.judge
        try:
            answer = await client.chat.completions.create(
                model=judge.model, messages=[{"role": "user", "content": prompt}], max_tokens=judge.max_tokens,
                temperature=judge.temperature, seed=judge.seed,
            )  # fmt: skip
        except JSONDecodeError:
            return self._without_answer(NO_COMPLETION)
        except OpenAIError as error:
            return self._failed(error)
        found = read_completion(answer)
        if found is None:
            return self._without_answer(NO_COMPLETION)
        self._in_a_row = 0
        return Reply(found.text, None, *found[1:])

    def _failed(self, error: OpenAIError) -> Reply:
        """The reply of a failed call; what one text alone may have brought about says nothing of the endpoint."""
        refuse_hopeless(error, self.judge, answered=self._has_answered)
        status = getattr(error, "status_code", None)
        of_endpoint = status is None or status == 429 or status >= 500
        return self._without_answer(f"{type(error).__name__}: {error}"[:500], of_endpoint)

    def _without_answer(self, text: str, of_endpoint: bool = True) -> Reply:
        """The reply of a call that gave no answer, or the end of the run where going on is of no use."""
        if of_endpoint or not self._has_answered:
            self._in_a_row += 1
        if self._in_a_row >= MOST_FAILURES_IN_A_ROW:
            problem = f"{self._in_a_row} calls in a row failed after their retries (the last: {text[:200]})"
            remedy = "the same command goes on; what was answered is kept"
            raise InputError("judge.base_url", self.judge.base_url, problem, remedy)
        return Reply(error=text)

    @property
    def _has_answered(self) -> bool:
        return len(self.replies) > self.num_failed

    def _count(self, answer_id: str, reply: Reply) -> None:
        self.replies[answer_id] = reply
        self.num_prompt_tokens += reply.num_prompt_tokens
        self.num_tokens += reply.num_tokens
        if reply.raw is None:
            self.num_failed += 1
        else:
            self.keep(answer_id, reply.raw)

    def note(self) -> str:
        """The text behind the progress line."""
        back = f"{int(self.limit.limit)} of {self.limit.most} in flight" if self.limit.limit < self.limit.most else ""
        failed = f"{self.num_failed} failed" if self.num_failed else ""
        tokens = f"{self.num_prompt_tokens + self.num_tokens} tokens"
        return ", ".join(text for text in (tokens, self._cost(), back, failed) if text)

    def summary(self) -> str:
        """What the run took, and why calls failed."""
        tokens = f"{self.num_prompt_tokens} prompt and {self.num_tokens} completion tokens"
        errors = [reply.error for reply in self.replies.values() if reply.error]
        failed = f"{len(errors)} failed (such as {errors[0][:120]})" if errors else ""
        refused = f"{self.limit.num_refused} times told to wait" if self.limit.num_refused else ""
        said = (f"{len(self.replies)} calls", tokens, self._cost(), refused, failed)
        return ", ".join(text for text in said if text)

    def _cost(self) -> str:
        prices = self.judge.usd_per_million_prompt_tokens, self.judge.usd_per_million_completion_tokens
        if prices[0] is None or prices[1] is None:
            return ""
        return f"${(self.num_prompt_tokens * prices[0] + self.num_tokens * prices[1]) / 1e6:.4f}"


def require_key(judge: OpenAIJudge) -> None:
    """What asks OpenAI's own API needs a key: said before anything is generated for it.

    Raises:
        InputError: the variable that should hold it is empty.
    """
    if judge.base_url == OpenAIJudge.model_fields["base_url"].default and not os.environ.get(judge.api_key_env):
        remedy = "export it, or set judge.base_url to an endpoint of your own"
        raise InputError("judge.api_key_env", judge.api_key_env, "this variable holds no key", remedy)


def refuse_hopeless(error: OpenAIError, judge: OpenAIJudge, answered: bool) -> None:
    """Raise where no retry helps.

    Args:
        answered: whether the endpoint has given an answer in this run.

    Raises:
        InputError: a wrong key, an unknown model, or nobody at the address.
    """
    from openai import APIConnectionError, APITimeoutError

    status = getattr(error, "status_code", None)
    if status == 401:
        problem, remedy = "the judge refuses the key in this variable (401)", "set it to a valid key"
        raise InputError("judge.api_key_env", judge.api_key_env, problem, remedy)
    if status == 404 or (status == 403 and not answered):
        problem = f"{judge.base_url} knows no such model or path, or denies it ({status})"
        raise InputError("judge.model", judge.model, problem, "check judge.model and judge.base_url")
    if isinstance(error, APIConnectionError) and not isinstance(error, APITimeoutError) and not answered:
        raise InputError("judge.base_url", judge.base_url, "nothing answers there", "start it or mend the address")
