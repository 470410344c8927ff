"""The Grafana dashboard asks for metrics and labels that the gate really has, with and without Ray's prefix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trimtab.policy.metrics import LABELS, PrometheusMetrics

FILE = Path(__file__).parent.parent / "serve" / "grafana" / "trimtab.json"
PREFIX = "${metrics}"
HISTOGRAM = ("_bucket", "_sum", "_count")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def exposed() -> set[str]:
    """The names of all series that the gate's registry can have."""
    endings = {"counter": ("_total",), "histogram": HISTOGRAM, "gauge": ("",)}
    families = PrometheusMetrics().registry.collect()
    return {f"{family.name}{ending}" for family in families for ending in endings[family.type]}


def _expressions(dashboard: dict[str, Any]) -> list[str]:
    targets = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    return [*targets, *(item["definition"] for item in dashboard["templating"]["list"] if item["type"] == "query")]


def _used(expression: str) -> set[str]:
    return {f"trimtab{name}" for name in re.findall(re.escape(PREFIX) + r"(\w+)", expression)}


def test_every_metric_exists_and_every_metric_is_shown(dashboard: dict[str, Any], exposed: set[str]) -> None:
    used = set().union(*map(_used, _expressions(dashboard)))
    assert all(map(_used, _expressions(dashboard)))
    assert used <= exposed
    shown = {re.sub(f"({'|'.join(HISTOGRAM)})$", "", name) for name in used}
    assert shown == set(LABELS)


def test_labels_exist(dashboard: dict[str, Any]) -> None:
    for expression in _expressions(dashboard):
        known = {label for name in _used(expression) for label in (*LABELS.get(name, ()), "le")}
        grouped = [name.strip() for names in re.findall(r"by \(([^)]*)\)", expression) for name in names.split(",")]
        chosen = re.findall(r"(\w+)=~?\"", expression)
        assert {*grouped, *chosen} <= known, expression


def test_panels_have_ids_of_their_own_and_do_not_overlap(dashboard: dict[str, Any]) -> None:
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (panel["gridPos"]["x"] + right, panel["gridPos"]["y"] + down)
        for panel in panels
        for right in range(panel["gridPos"]["w"])
        for down in range(panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(right for right, _ in cells) < 24


def test_prefix_is_rays_or_none(dashboard: dict[str, Any]) -> None:
    (prefix,) = (item for item in dashboard["templating"]["list"] if item["name"] == "metrics")
    assert [option["value"] for option in prefix["options"]] == ["ray_trimtab", "trimtab"]
    named = [f"{option['text']} : {option['value']}" for option in prefix["options"]]
    assert prefix["query"] == ", ".join(named)


def test_data_source_is_chosen_by_the_reader(dashboard: dict[str, Any]) -> None:
    sources = {json.dumps(panel["datasource"]) for panel in dashboard["panels"]}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
