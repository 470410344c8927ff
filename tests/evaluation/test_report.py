"""The report, made from small finished outputs: what it says, what it escapes, what it refuses."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.evaluation.outputs import KS, PROMPTS, prefill_output, retention_output, two_models, verdicts_of
from trimtab.artifacts import Record, read_record
from trimtab.config import InputError
from trimtab.evaluation import report
from trimtab.evaluation.reporting.comparing import NLL, compare
from trimtab.evaluation.reporting.config import ReportConfig, ReportedModel
from trimtab.evaluation.reporting.runs import sides_of
from trimtab.judging import OpenAIJudge
from trimtab.stats import paired_difference

pytestmark = pytest.mark.slow  # each draws its pictures


@pytest.fixture
def config(tmp_path: Path) -> ReportConfig:
    """A report on two models and a training."""
    return two_models(tmp_path)


def _page(config: ReportConfig) -> str:
    report.run(config)
    return (config.output / "report.html").read_text(encoding="utf-8")


def _markup(page: str) -> tuple[list[str], set[str]]:
    """What a browser would fetch or link to, and the tags in use."""
    links, tags = [], set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            links.extend(value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data"))
            assert not any(name.startswith("on") for name, _ in attrs)

    Parser().feed(page)
    assert links
    return links, tags


def _table(config: ReportConfig, width: int = 100) -> list[str]:
    shown = io.StringIO()
    Console(width=width, file=shown).print(report.summary_table(config))
    return shown.getvalue().splitlines()


def test_writes_the_page_the_pictures_and_the_numbers(config: ReportConfig) -> None:
    record = report.run(config)
    names = ("report.html", "report.md", "model_card.md", "report.json", "corr.png", "s0_s1.png", "loss.png")
    assert all((config.output / name).stat().st_size for name in names)
    assert json.loads((config.output / "report.json").read_text()) == record.results
    assert record.inputs.keys() == {"training"} | {
        f"models.{number}.{kind}" for number in (0, 1) for kind in ("prefill", "configurable", "retention")
    }


def test_the_page_requests_nothing_and_escapes_all_text(config: ReportConfig) -> None:
    page = _page(config)
    links, tags = _markup(page)
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not tags & {"script", "iframe", "object", "b", "base"}
    assert not re.search(r"url\(|@import", page)
    assert "&lt;script&gt;alert(" in page
    assert "tuned &lt;b&gt;" in page


def test_the_difference_is_the_paired_one(config: ReportConfig) -> None:
    sides = [{f"{p}-{k}": float(v == "yes") for (p, k), v in verdicts_of(n).items()} for n in (2, 5)]
    cases = [(f"{p}-{k}", p, str(k)) for p in PROMPTS for k in KS]
    cluster_of, group_of = {case: p for case, p, _ in cases}, {case: k for case, _, k in cases}
    expected = paired_difference(*sides, cluster_of, group_of, bounds=(-1, 1))
    shown = f"{expected.value:+.3f} [{expected.low:+.3f}, {expected.high:+.3f}]"
    row = next(line for line in _table(config) if "Corr_mean" in line)
    assert row.rstrip().endswith(shown)
    (found,) = report.run(config).results["measures"]["Corr_mean"]["differences"].values()
    assert found == expected.model_dump() | {"reason": ""}
    assert shown in (config.output / "report.md").read_text(encoding="utf-8")


def test_only_three_rows_have_a_difference(config: ReportConfig) -> None:
    rows = report.run(config).results["measures"]
    changes = {name: row["differences"]["tuned <b>"]["value"] for name, row in rows.items() if row["differences"]}
    assert changes == pytest.approx({"Corr_mean": 0.375, "S0 + S1": 1.0, NLL: 0.45})


@pytest.mark.parametrize("width", [80, 100])
def test_the_terminal_table_fits_and_cuts_nothing(config: ReportConfig, width: int) -> None:
    lines = _table(config, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_what_was_not_scored_is_not_zero(config: ReportConfig, tmp_path: Path) -> None:
    unparsed = prefill_output(tmp_path / "other" / "prefill", dict.fromkeys(verdicts_of(0), "unparsed"))
    models = (config.models[0], ReportedModel(name="other", prefill=unparsed))
    other = config.model_copy(update={"models": models})
    row = next(line for line in _table(other) if "Corr_mean" in line)
    assert row.split()[-2:] == ["n/a", "n/a"]
    assert next(line for line in _table(other) if line.strip().startswith("S1")).split()[-1] == "n/a"
    page = _page(other)
    assert "No difference for Corr_mean: the two share no scored case." in page
    assert "No difference for S0 + S1: not measured for both models." in page
    assert "16 of 16 rows have no verdict" in page


def test_no_difference_between_different_settings(config: ReportConfig, tmp_path: Path) -> None:
    warmer = prefill_output(tmp_path / "warmer" / "prefill", verdicts_of(5), temperature=1.0)
    own = retention_output(tmp_path / "warmer" / "ret", 0.1)
    models = (config.models[0], ReportedModel(name="warmer", prefill=warmer, retention=own))
    page = _page(config.model_copy(update={"models": models}))
    assert "No difference for Corr_mean: measured with different settings (temperature)." in page
    assert "measured with different settings (the answers scored)" in page


@pytest.mark.parametrize(("judge", "same"), [({"base_url": "http://b/v1"}, True), ({"model": "other"}, False)])
def test_a_judge_at_another_address_is_the_same_judge(
    config: ReportConfig, tmp_path: Path, judge: dict[str, Any], same: bool
) -> None:
    judges = OpenAIJudge(base_url="http://a/v1"), OpenAIJudge.model_validate({"base_url": "http://a/v1"} | judge)
    folders = [prefill_output(tmp_path / f"by-{n}" / "prefill", verdicts_of(n), judge=judges[n]) for n in (0, 1)]
    models = tuple(ReportedModel(name=folder.parent.name, prefill=folder) for folder in folders)
    difference = compare(*sides_of(config.model_copy(update={"models": models})), "prefill")
    assert difference.reason == ("" if same else "measured with different settings (judge)")


def test_one_model_alone(config: ReportConfig) -> None:
    alone = config.model_copy(update={"models": config.models[:1], "training": None})
    assert not any("difference" in line for line in _table(alone))
    assert "Paired differences" not in _page(alone)
    assert not (alone.output / "loss.png").exists()


def test_a_second_run_is_skipped(config: ReportConfig) -> None:
    first = report.run(config)
    before = (config.output / "report.html").stat().st_mtime_ns
    assert report.run(config) == first
    assert (config.output / "report.html").stat().st_mtime_ns == before


def test_an_input_that_was_made_anew_is_shown(config: ReportConfig) -> None:
    report.run(config)
    folder = config.models[0].prefill
    assert folder is not None
    done = read_record(folder)
    assert done is not None
    share = done.results["corr_mean"] | {"value": 0.125}
    later = {"results": done.results | {"corr_mean": share}, "created": "2999-01-01T00:00:00+00:00"}
    (folder / "record.json").write_text(done.model_copy(update=later).model_dump_json(), encoding="utf-8")
    assert report.run(config).results["measures"]["Corr_mean"]["values"]["base"]["value"] == 0.125


@pytest.mark.parametrize("kind", ["prefill", "configurable", "retention"])
def test_a_missing_input_is_named(config: ReportConfig, tmp_path: Path, kind: str) -> None:
    last = config.models[-1].model_copy(update={kind: tmp_path / "nowhere"})
    with pytest.raises(InputError, match=rf"^models\.1\.{kind}: .*no such folder"):
        report.run(config.model_copy(update={"models": (config.models[0], last)}))


@pytest.mark.parametrize(("field", "stage"), [("training", "train"), ("synthesis", "synthesize")])
def test_an_unfinished_input_is_named(config: ReportConfig, tmp_path: Path, field: str, stage: str) -> None:
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(InputError, match=rf"^{field}: .*unfinished.*trimtab {stage}"):
        report.run(config.model_copy(update={field: tmp_path / "unfinished"}))


def test_names_must_differ(config: ReportConfig) -> None:
    with pytest.raises(ValueError, match="names must differ"):
        ReportConfig(output=config.output, models=(config.models[0], config.models[0]))


def test_the_record_is_of_the_report(config: ReportConfig) -> None:
    record: Record = report.run(config)
    assert (record.stage, record.counts["models"], record.counts["pictures"]) == ("report", 2, 3)
