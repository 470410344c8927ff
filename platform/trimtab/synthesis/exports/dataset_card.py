"""The dataset card: what the pairs were made from and how, what they hold, and how to load them."""

from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from trimtab.artifacts import RECIPE, Record
from trimtab.files import URI, AnyPath
from trimtab.synthesis.exports.pairs import Which
from trimtab.synthesis.exports.survey import Mean, Survey

TEMPLATE = "dataset_card.md.jinja"
TAGS = ["trimtab", "trl", "dpo", "preference", "course-correction", "configurable-safety", "not-for-all-audiences"]
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M",
         100_000_000: "10M<n<100M", 1_000_000_000: "100M<n<1B"}  # fmt: skip
PAIRS = {
    "all": "all pairs of a group: each response is preferred to every lower one",
    "adjacent": "the adjacent pairs of a group: each response is preferred to the next one",
    "best_worst": "one pair of a group: the best response is preferred to the worst",
}


def dataset_card(found: Survey, source: Record, groups: AnyPath, which: Which, licence: str | None) -> str:
    """The card's Markdown with its YAML front matter; no path of this machine stands in it.

    Args:
        source: the record of the synthesis, whose folder is ``groups``.
    """
    loader = PackageLoader("trimtab", "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=False, trim_blocks=True,
                              keep_trailing_newline=True)  # fmt: skip
    environment.filters |= {"fenced": fenced, "mean": _shown}
    num_pairs = found.num_pairs.total()
    return environment.get_template(TEMPLATE).render(
        metadata=_yaml(front_matter(num_pairs, licence)), found=found, num_pairs=num_pairs,
        num_groups=found.num_groups.total(), pairs=PAIRS[which], licence=licence, source=source,
        origin=_origin(source), model=_model(source), recipe=_yaml(_recipe(groups)),
    )  # fmt: skip


def front_matter(num_pairs: int, licence: str | None) -> dict[str, Any]:
    """What the Hub and ``load_dataset`` read at the head of the card."""
    return {
        "pretty_name": "Ranked preference pairs for course-correction and configurable safety",
        **({"license": licence} if licence else {}),
        "task_categories": ["text-generation"],
        "size_categories": [size_category(num_pairs)],
        "tags": TAGS,
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }


def size_category(num_rows: int) -> str:
    """The Hub's name for a number of rows."""
    return next((name for limit, name in SIZES.items() if num_rows < limit), "n>1B")


def fenced(text: str, language: str = "text") -> str:
    """A text word for word as a code block, whatever backticks it holds."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip(chr(10))}\n{fence}"


def _shown(mean: Mean) -> str:
    return "n/a" if mean.value is None else f"{mean.value:.1f}"


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def _recipe(groups: AnyPath) -> Any:
    """The synthesis' recipe without what only places the work; of files, the names."""
    claimed = json.loads((groups / RECIPE).read_text(encoding="utf-8"))
    return _names_only(claimed["recipe"])


def _names_only(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _names_only(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_names_only(item) for item in value]
    is_place = isinstance(value, str) and (PurePath(value).is_absolute() or URI.fullmatch(value))
    return PurePath(value).name if is_place else value


def _origin(source: Record) -> str:
    """What the prompts and given responses came from."""
    recipe = source.config.get("recipe", {})
    if recipe.get("type") in ("flip", "mixture"):
        return "other ranked groups, fingerprints " + ", ".join(source.inputs.values())
    path = recipe.get("data") or recipe.get("source", {}).get("data")
    name = PurePath(path).name if path else "the sample shipped with trimtab"
    return f"{name} (fingerprint {source.inputs.get('data', 'not recorded')})"


def _model(source: Record) -> str:
    """What wrote responses."""
    engine = source.config.get("engine", {})
    if engine.get("type") == "openai" and source.counts.get("generations"):
        return f"{engine['model']}, by an endpoint that tells no fingerprint"
    if "model" not in source.inputs:
        return "none, the responses were taken from the source"
    name = str(source.config["model"]).rstrip("/").rpartition("/")[2]
    return f"{name} (fingerprint {source.inputs['model']})"
