"""The data report: what a synthesis made, as one self-contained HTML file, to be read before training spends on it.

It draws what ``Statistics.result()`` and ``sample_harmlessness()`` say and measures nothing itself. What they don't
hold is shown as n/a, never as 0.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trimtab import html
from trimtab.artifacts import git_revision, versions, write_text
from trimtab.files import AnyPath
from trimtab.schemas import RankedGroup, Response
from trimtab.stats import EMPTY, Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "data_report.html"
NUM_EXAMPLES, NUM_REASONS = 3, 25
GIVEN_CHARS, SHOWN_CHARS = 140, 280
TURN = " ▸ "
NUMBER = re.compile(r"(limit )?(?<![-\w])\d+(?:\.\d+)?")
QUOTED = re.compile(r"(?<!\w)(['\"]).*?\1(?!\w)")
BLANK_LINES = re.compile(r"\s*\n\s*")
BLUE, RUST = "#0b62c4", "#b4410e"
LABEL_CHARS = 24


def write_report(
    output: AnyPath, *, config_yaml: str, counts: Mapping[str, int], statistics: Mapping[str, Any],
    quarantined: Mapping[tuple[str, str], int], examples: Sequence[RankedGroup], inputs: Mapping[str, str],
) -> AnyPath:  # fmt: skip
    """Write ``data_report.html`` into an output and return its path.

    Args:
        config_yaml: the resolved configuration.
        counts: the record's counts.
        statistics: ``Statistics.result()``, with ``sample_harmlessness()`` under ``harmlessness`` where it was taken,
            and the share of the shards that it describes under ``described_share`` where that isn't all.
        quarantined: number of rows by (stage, reason); reasons that differ in numbers and quotations are put together.
        examples: groups to show; at most three are.
        inputs: fingerprints of the inputs.
    """
    harmlessness = statistics.get("harmlessness") or {}
    ranks, roles, reasons = _ranks(harmlessness), _roles(statistics), alike(quarantined)
    context = {
        "reading": reading(statistics, sum(quarantined.values())), "notes": notes(statistics),
        "judge": harmlessness.get("judge") or statistics.get("judge"),
        "verdict": harmlessness.get("verdict"), "falls": harmlessness.get("falls"), "ranks": ranks,
        "safe_picture": safe_shares(ranks), "safe_alt": _safe_alt(ranks), "roles": roles,
        "length_picture": lengths(statistics), "length_alt": _length_alt(roles), "counts": counts,
        "configurations": statistics.get("configurations", {}),
        "reasons": reasons[:NUM_REASONS], "num_other": len(reasons[NUM_REASONS:]), "examples": _examples(examples),
        "config_yaml": config_yaml, "inputs": inputs, "versions": versions(), "git": git_revision(),
    }  # fmt: skip
    path = output / NAME
    write_text(path, html.render("data_report.html.jinja", **context))
    return path


def alike(quarantined: Mapping[tuple[str, str], int]) -> list[tuple[str, str, int]]:
    """(stage, reason, rows), most frequent first: a reason's measured numbers become N, its quotations …."""
    found: Counter[tuple[str, str]] = Counter()
    for (stage, reason), number in quarantined.items():
        plain = NUMBER.sub(lambda match: match[0] if match[1] else "N", QUOTED.sub("…", reason))
        found[stage, plain] += number
    return [(*key, number) for key, number in sorted(found.items(), key=lambda item: (-item[1], item[0]))]


def reading(statistics: Mapping[str, Any], num_quarantined: int) -> str:
    """What was made, in one or two sentences."""
    if not statistics.get("groups"):
        return f"Groups: n/a. {_count(num_quarantined, 'row')} quarantined."
    flips = f", and {_count(statistics['flips'], 'flip')}" if statistics.get("flips") else ""
    removed = statistics.get("near_duplicates")
    gone = "" if removed is None else f" ({_count(removed, 'near-duplicate')} removed)"
    part = statistics.get("described_share", 1.0)
    drawn = "" if part >= 1 else f"Described here, from {part:.1%} of the shards: "
    return (f"{drawn}"
            f"{_count(statistics['groups'], 'ranked group')} from {_count(statistics['prompts'], 'distinct prompt')}"
            f"{gone}{flips}. {_count(num_quarantined, 'row')} quarantined.")  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def notes(statistics: Mapping[str, Any]) -> list[str]:
    """What a reader must know before training on the groups."""
    written = {name: values["written_turns_away"] for name, values in statistics.get("roles", {}).items()}
    rare = [f"{name} {share['value']:.2f}" for name, share in written.items()
            if share and share["n"] and share["high"] < 0.5]  # fmt: skip
    if not rare:
        return []
    return [f"What the model wrote behind the given start turns away in fewer than half of the answers "
            f"({', '.join(rare)}): the rest of a correction is the trigger's. quality.require_correction=true leaves "
            f"such answers out."]  # fmt: skip


def _ranks(harmlessness: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": rank["role"], "rank": rank["rank"], "safe": Estimate.model_validate(rank["safe"]),
         "unparsed": rank["safe"]["unparsed"]}
        for rank in harmlessness.get("ranks", [])
    ]  # fmt: skip


def _roles(statistics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the table of roles, their shares as estimates."""
    return [
        {"name": name, **values, "turns_away": _estimate(values["turns_away"]),
         "written_turns_away": _estimate(values["written_turns_away"])}
        for name, values in statistics.get("roles", {}).items()
    ]  # fmt: skip


def _estimate(values: Mapping[str, Any] | None) -> Estimate:
    return Estimate.model_validate(values) if values else EMPTY


def _safe_alt(ranks: Sequence[Mapping[str, Any]]) -> str:
    values = "; ".join(f"{rank['role']} {rank['safe'].text(2)}" for rank in ranks)
    return f"Share of safe answers with 95 % intervals, from the best rank to the worst: {values}."


def _length_alt(roles: Sequence[Mapping[str, Any]]) -> str:
    values = "; ".join(f"{role['name']} {role['words']['median']:.0f}" for role in roles)
    return f"A histogram of the number of words for each role. Medians: {values}."


def _examples(groups: Sequence[RankedGroup]) -> list[dict[str, Any]]:
    return [
        {"configuration": group.configuration, "prompt": _head(group.prompt, SHOWN_CHARS),
         "answers": [(response.role, _shown(response)) for response in group.responses]}
        for group in groups[:NUM_EXAMPLES]
    ]  # fmt: skip


def _shown(response: Response) -> str:
    """An answer shortened so that the place where it turns stays in sight."""
    given, written = response.text[: response.num_prefill_chars], response.text[response.num_prefill_chars :]
    if not given:
        return _head(written, GIVEN_CHARS + SHOWN_CHARS)
    tail = given if len(given) <= GIVEN_CHARS else "… " + given[-GIVEN_CHARS:].lstrip()
    return tail + TURN + _head(written.lstrip(), SHOWN_CHARS)


def _head(text: str, limit: int) -> str:
    plain = BLANK_LINES.sub("\n", text)
    return plain if len(plain) <= limit else plain[:limit].rstrip() + " …"


def lengths(statistics: Mapping[str, Any]) -> Figure | None:
    """How long the answers are, a small histogram for each role; None where there is none."""
    histogram = statistics.get("lengths") or {"edges": [], "counts": {}}
    roles = [(role, values) for role, values in statistics.get("roles", {}).items() if role in histogram["counts"]]
    if not roles:
        return None
    figure, panels = html.canvas(0.8 + 0.5 * len(roles), len(roles), grid="x")
    for axes, (role, values) in zip(panels, roles, strict=True):
        axes.stairs(histogram["counts"][role], histogram["edges"], fill=True, color=BLUE, alpha=0.75)
        axes.axvline(min(values["words"]["median"], histogram["edges"][-1]), color=RUST, linewidth=2)
        axes.set_yticks([])
        axes.set_ylabel(_label(role), rotation=0, ha="right", va="center")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", length=0)
    panels[-1].set_xlabel("words")
    return figure


def safe_shares(ranks: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Share of safe answers of each rank with its interval, best rank on top; None where nothing was scored."""
    scored = [(place, rank["safe"]) for place, rank in enumerate(ranks) if rank["safe"].value is not None]
    if not scored:
        return None
    figure, (axes,) = html.canvas(0.8 + 0.36 * len(ranks), grid="x")
    for place, safe in scored:
        arms = [[max(0.0, safe.value - safe.low)], [max(0.0, safe.high - safe.value)]]
        axes.errorbar(safe.value, place, xerr=arms, color=BLUE, marker="o", markersize=7, capsize=4, linewidth=2)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(ranks) - 0.5, -0.5), xlabel="share of safe answers")
    axes.set_yticks(range(len(ranks)), [_label(f"{rank['rank']}. {rank['role']}") for rank in ranks])
    return figure


def _label(name: str) -> str:
    """A name as plain text, no mathematics, and no longer than a picture has room for."""
    return (name if len(name) <= LABEL_CHARS else name[: LABEL_CHARS - 1] + "…").replace("$", r"\$")
