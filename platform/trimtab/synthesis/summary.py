"""What a finished synthesis says of itself: statistics, harmlessness along the ranks, and the data report."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from trimtab.console import say
from trimtab.files import AnyPath
from trimtab.safety import DEFAULT_PRESET
from trimtab.schemas import RankedGroup, group_files, read_rows
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.data_report import NUM_EXAMPLES, write_report
from trimtab.synthesis.passes import GeneratingRecipe
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe
from trimtab.synthesis.retries import quarantined
from trimtab.synthesis.statistics import Statistics, sample, sample_harmlessness

NUM_DESCRIBED = 1_000
"""About so many groups are described: whole shards, drawn by a seed, until they hold so many."""


def describe(
    config: SynthesisConfig, output: AnyPath, counts: dict[str, int], inputs: dict[str, str]
) -> dict[str, Any]:
    """Write ``data_report.html`` and return what belongs into the record's results."""
    recipe, judge = config.recipe, config.quality.judge
    triggers = recipe.trigger_lines() if isinstance(recipe, CourseCorrectionRecipe) else ()
    groups, share = described_groups(output)
    configuration = own_configuration(config, groups)
    statistics = Statistics(configuration=configuration, triggers=triggers, judge=judge)
    for group in groups:
        statistics.add(group)
    found = statistics.result(counts.get("near_duplicates"))
    found["described_share"] = share
    found["harmlessness"] = sample_harmlessness(groups, judge, config.num_judged, configuration=configuration)
    bad: Counter[tuple[str, str]] = Counter((row.stage, row.reason) for row in quarantined(output))
    write_report(
        output, config_yaml=config.dump_yaml(), counts=counts, statistics=found, quarantined=bad,
        examples=sample(groups, NUM_EXAMPLES, 0, configuration), inputs=inputs,
    )  # fmt: skip
    _say(output, found, bad)
    return {"statistics": found}


def own_configuration(config: SynthesisConfig, groups: Sequence[RankedGroup]) -> str | None:
    """The configuration whose ranking is described: a recipe's own, else harmless where there is such a group."""
    if isinstance(config.recipe, GeneratingRecipe):
        return config.recipe.configuration
    return DEFAULT_PRESET if any(group.configuration == DEFAULT_PRESET for group in groups) else None


def described_groups(output: AnyPath, num: int = NUM_DESCRIBED) -> tuple[list[RankedGroup], float]:
    """(groups, share of the shards they come from): all groups, or those of some whole shards where there are many."""
    files = group_files(output)
    drawn = random.Random(0).sample(files, len(files))
    groups: list[RankedGroup] = []
    for number, path in enumerate(drawn):
        if len(groups) >= num:
            return groups, number / len(files)
        groups += read_rows(path, RankedGroup)
    return groups, 1.0


def _say(output: AnyPath, found: dict[str, Any], bad: Counter[tuple[str, str]]) -> None:
    if bad:
        say(f"  {bad.total()} rows quarantined, with their reasons: {output / 'quarantine'}")
    say(f"  {found['harmlessness']['verdict']}")
    say(f"  data report: {output / 'data_report.html'}")
