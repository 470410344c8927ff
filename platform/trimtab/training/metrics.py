"""What training sees of its groups: losses, margins and right pairs, by how far apart two ranks are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations


@dataclass
class Seen:
    """Sums over groups, which can be joined over workers."""

    groups: int = 0
    tokens: int = 0
    loss: float = 0.0
    nll: float = 0.0
    pairs: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    right: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    margin: float = 0.0

    def add(self, loss: float, nll: float, margins: list[float]) -> None:
        """One group; ``margins`` of its pairs (i, j), i < j, in lexicographic order."""
        self.groups += 1
        self.loss, self.nll = self.loss + loss, self.nll + nll
        num_responses = next(n for n in range(2, len(margins) + 2) if n * (n - 1) // 2 == len(margins))
        for (better, worse), margin in zip(combinations(range(num_responses), 2), margins, strict=True):
            self.pairs[worse - better] += 1
            self.right[worse - better] += margin > 0
            self.margin += margin

    def add_tokens(self, num_tokens: int) -> None:
        """Tokens of a forward pass."""
        self.tokens += num_tokens

    @staticmethod
    def joined(shares: Iterable[Seen]) -> Seen:
        """The sum of several workers' shares."""
        total = Seen()
        for share in shares:
            total.groups, total.tokens = total.groups + share.groups, total.tokens + share.tokens
            total.loss, total.nll = total.loss + share.loss, total.nll + share.nll
            total.margin += share.margin
            for gap in share.pairs:
                total.pairs[gap] += share.pairs[gap]
                total.right[gap] += share.right[gap]
        return total

    def means(self, by_gap: bool = False) -> dict[str, float]:
        """Means per group (losses) and per pair (accuracy, margin); the sum of tokens. Empty over no group."""
        if not self.groups:
            return {}
        num_pairs = sum(self.pairs.values())
        values = {"dpo_loss": self.loss / self.groups, "nll": self.nll / self.groups,
                  "accuracy": sum(self.right.values()) / num_pairs, "margin": self.margin / num_pairs,
                  "tokens": float(self.tokens)}  # fmt: skip
        if by_gap:
            values |= {f"accuracy_gap_{gap}": self.right[gap] / self.pairs[gap] for gap in sorted(self.pairs)}
        return values
