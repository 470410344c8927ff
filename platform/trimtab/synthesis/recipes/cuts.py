"""Cutting a full harmful response into K initial harmful responses (arXiv 2407.16637, §4)."""

from __future__ import annotations

import random

PUNCTUATION = frozenset(',.!:;?-"(){}[]')


def cut(response: str, num_cuts: int, rng: random.Random) -> list[str]:
    """The K initial harmful responses IHR_1 … IHR_K, each a prefix of the next.

    With t punctuation characters, t_K is drawn from {t//K − 1, t//K} (at least 1); IHR_i ends with the
    (i·t_K)-th of them.

    Raises:
        ValueError: fewer than K punctuation characters.
    """
    places = [number for number, character in enumerate(response) if character in PUNCTUATION]
    step = len(places) // num_cuts
    if step == 0:
        raise ValueError(
            f"the harmful response has {len(places)} punctuation characters, fewer than num_cuts={num_cuts}"
        )
    step = max(1, rng.choice((step - 1, step)))
    return [response[: places[i * step - 1] + 1] for i in range(1, num_cuts + 1)]
