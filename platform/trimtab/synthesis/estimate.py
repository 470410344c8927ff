"""``--plan``: what a plan will take, before an engine is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from trimtab.chat import Chat
from trimtab.files import AnyPath
from trimtab.schemas import PlanRow, read_rows

SAMPLE = 1000
BYTES_A_TOKEN = 4.5
"""Of English text; generations are stored in the parts, in the groups and once more for each flip."""


@dataclass(frozen=True)
class Estimate:
    """What a plan asks for. Tokens of prompts are counted on a sample of the rows where there are many."""

    num_rows: int
    num_prompt_tokens: int
    most_new_tokens: int
    sampled: bool
    tokens_per_s: float | None

    @property
    def engine_hours(self) -> float | None:
        """Hours of one engine where every row takes all its tokens; None without a rate."""
        return self.most_new_tokens / self.tokens_per_s / 3600 if self.tokens_per_s else None

    def lines(self, num_copies: int) -> list[str]:
        """What ``--plan`` prints; ``num_copies`` of each text are stored."""
        about = "about " if self.sampled else ""
        hours = self.engine_hours
        mib = (self.num_prompt_tokens + self.most_new_tokens) * BYTES_A_TOKEN * num_copies / 2**20
        return [
            f"{self.num_rows} rows, {about}{self.num_prompt_tokens} prompt tokens, at most {self.most_new_tokens} new",
            f"engine-hours: at most {hours:.2f} at {self.tokens_per_s:.0f} tokens/s of one engine" if hours is not None
            else "engine-hours: unknown; give tokens_per_s, or run --preview N first, which measures it",
            f"disk: at most {f'{mib:.1f} MiB' if mib < 1024 else f'{mib / 1024:.1f} GiB'} of text",
        ]  # fmt: skip


def estimate(plans: Sequence[AnyPath], model: Path | None, tokens_per_s: float | None) -> Estimate:
    """The estimate of plan files, streamed.

    Args:
        model: its tokenizer counts the prompts; without one (an endpoint) characters do.
    """
    rows = (row for path in plans for row in read_rows(path, PlanRow))
    sample = list(islice(rows, SAMPLE))
    num_rows, new = len(sample), sum(row.max_tokens for row in sample)
    for row in rows:
        num_rows, new = num_rows + 1, new + row.max_tokens
    chat = Chat.from_folder(str(model)) if model else None
    counted = sum(_prompt_tokens(chat, row) for row in sample)
    prompt_tokens = round(counted * num_rows / len(sample)) if sample else 0
    return Estimate(num_rows, prompt_tokens, new, num_rows > len(sample) or chat is None, tokens_per_s)


def _prompt_tokens(chat: Chat | None, row: PlanRow) -> int:
    if chat:
        return len(chat.prompt_ids(row.system, row.prompt, row.prefill))
    return round(len(f"{row.system or ''}{row.prompt}{row.prefill}") / BYTES_A_TOKEN)
