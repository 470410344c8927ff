"""What the report says of several models and of every kind of run; its pictures are drawn in ``test_report``."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.evaluation.outputs import (
    CATEGORIES,
    HOSTILE,
    KS,
    PROMPTS,
    ability_output,
    attacked_output,
    configurable_output,
    prefill_output,
    three_models,
    verdicts_of,
)
from trimtab.artifacts import Record, read_record
from trimtab.config import InputError
from trimtab.evaluation import ability, attempt_results, prefill, report
from trimtab.evaluation.following import ConfigurationPair, measure
from trimtab.evaluation.reporting import markdown, page, words
from trimtab.evaluation.reporting.attacked import attacks_grid, changes_grid, kinds_grid
from trimtab.evaluation.reporting.categories import by_category
from trimtab.evaluation.reporting.comparing import compare, incomparable, measures
from trimtab.evaluation.reporting.config import ReportConfig, ReportedModel
from trimtab.evaluation.reporting.configurations import pairs_grid
from trimtab.evaluation.reporting.examples import Examples, examples
from trimtab.evaluation.reporting.grids import Grid, headline
from trimtab.evaluation.reporting.judges import agreement_grid, judges_grid
from trimtab.evaluation.reporting.runs import Side, sides_of
from trimtab.judging import RulesJudge, described
from trimtab.safety import SafetyConfig
from trimtab.schemas import Verdict, read_rows
from trimtab.stats import EMPTY

pytestmark = pytest.mark.slow  # the figures of three models, each with its thousands of resamples


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ReportConfig:
    """Base and two tuned models, with injections and attacks."""
    return three_models(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def sides(config: ReportConfig) -> list[Side]:
    return sides_of(config)


def _rendered(sides: list[Side]) -> str:
    rows = measures(sides)
    return page.render("A <title>", sides, rows, page.grids(sides, rows, {}), {}, {})


@pytest.fixture(scope="module")
def rendered(sides: list[Side]) -> str:
    """The page without its pictures."""
    return _rendered(sides)


def _cells(grid: Grid, label: str) -> list[str]:
    (found,) = [cells for name, cells in grid.rows if name == label]
    return [cell.text for cell in found]


def _with(side: Side, kind: str, **changes: Any) -> Side:
    """The side, one of whose records says something else."""
    return Side(side.model, side.records | {kind: side.records[kind].model_copy(update=changes)})


def test_every_other_model_is_compared_with_the_first(config: ReportConfig, sides: list[Side]) -> None:
    (row,) = [row for row in measures(sides) if row.label == "Corr_mean"]
    folders = [model.prefill for model in config.models]
    assert folders[0] is not None
    expected = [prefill.compare(folders[0], folder) for folder in folders[1:] if folder]
    assert [difference.estimate for difference in row.differences] == expected
    assert [value.value for value in row.values] == [0.25, 0.5, 0.75]
    said = words.findings(sides, measures(sides))
    assert any(line.startswith("Corr_mean, dpo − base: +0.250 [") for line in said)
    assert any(line.startswith("Corr_mean, cst − base: +0.500 [") for line in said)
    assert all("four times in five" in line for line in said)


def test_table_of_several_models_has_their_differences_in_rows_of_their_own(sides: list[Side]) -> None:
    grid = headline(sides, measures(sides))
    assert grid.head == ("measure", "base", "dpo", "cst")
    assert _cells(grid, "Corr_mean − base") == ["", "+0.250", "+0.500"]
    assert _cells(grid, "switched by any injection") == ["0.375", "0.250", "0.125"]
    assert not [label for label, _ in grid.rows if label.startswith("switched by any injection −")]


@pytest.mark.parametrize("width", [80, 100])
def test_terminal_table_of_three_models_fits_and_cuts_nothing(config: ReportConfig, width: int) -> None:
    shown = io.StringIO()
    Console(width=width, file=shown).print(report.summary_table(config))
    assert max(map(len, shown.getvalue().splitlines())) <= width
    assert "…" not in shown.getvalue()


def test_model_cards_table_holds_every_measure_and_no_markup_of_anybodys(sides: list[Side]) -> None:
    renamed = [Side(sides[0].model.model_copy(update={"name": "a|b<i>\n[x](u)"}), sides[0].records), *sides[1:]]
    lines = markdown.model_card(renamed, measures(renamed)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == r"| measure | a\|b\<i\> [x\](u) | dpo | cst |"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {5}
    assert [line.split("|")[1].strip() for line in table[2:]][:3] == ["Corr@10", "Corr@20", "Corr_mean"]
    record = sides[1].records["prefill"]
    assert f"- dpo, evaluate prefill: `{record.fingerprint}`" in lines
    known = markdown.plain(described(RulesJudge(), "course_corrects"))
    unknown = markdown.plain(described(RulesJudge(), "is_safe"))
    assert "fresh half" in known
    assert unknown.endswith("agreement with labels unknown")
    assert all(any(said in line for line in lines) for said in (known, unknown))


def test_sections_are_those_of_the_runs(config: ReportConfig, sides: list[Side], rendered: str) -> None:
    headings = re.findall(r'<h2 id="([\w-]+)"', rendered)
    assert headings == ["headline", "differences", "attacks", "categories", "judge", "counts", "examples", "settings"]
    alone = ReportConfig(output=config.output, models=(ReportedModel(name="m", injection=config.models[0].injection),))
    found = re.findall(r'<h2 id="([\w-]+)"', _rendered(sides_of(alone)))
    assert found == ["headline", "attacks", "categories", "judge", "counts", "examples", "settings"]


def test_texts_of_models_and_people_are_escaped_everywhere(rendered: str) -> None:
    tags: set[str] = set()

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            assert tag != "img", "nothing is drawn here"

    Parser().feed(rendered)
    assert not tags & {"script", "iframe", "object", "title-"}
    assert "A &lt;title&gt;" in rendered
    assert HOSTILE not in rendered
    assert rendered.count("&lt;script&gt;alert(") >= 10


def test_markdown_says_what_stands_below_a_table_and_which_way_is_better(sides: list[Side]) -> None:
    text = markdown.report("T", sides, measures(sides), [kinds_grid(sides, "injection")], [])
    assert "forged could not be tried with dpo" in text
    assert "<script>" not in text
    lower = "Lower is better for switched by any injection, broken by any attack; for the others, higher is."
    assert lower in text
    assert lower in markdown.model_card(sides, measures(sides))


def test_counts_that_differ_between_models_are_no_count_of_both(sides: list[Side]) -> None:
    counts = sides[1].records["prefill"].counts | {"cases": 9, "dropped_short_cases": 7}
    other = _with(sides[1], "prefill", counts=counts)
    assert "of a harmful answer: 9 to 16 cases from 8 prompts." in " ".join(words.reading([sides[0], other]))
    (numbers,) = [numbers for _, stage, numbers in page._counts([other]) if stage == "evaluate prefill"]
    assert dict(zip(words.COUNTS, numbers, strict=True))["dropped_short_cases"] == 7


def test_every_pair_is_shown_where_the_headline_says_less(tmp_path: Path) -> None:
    other = ConfigurationPair(s0=SafetyConfig(preset="harmless"), s1=SafetyConfig(preset="uncensored"), opposed=False)
    folder = configurable_output(tmp_path / "m" / "conf", 3, pairs=(ConfigurationPair(), other))
    (side,) = sides_of(ReportConfig(output=tmp_path, models=(ReportedModel(name="m", configurable=folder),)))
    assert {label: cells[0].text for label, cells in pairs_grid([side]).rows} == {
        "S0, uncensored": "0.375", "S1, harmless": "0.375", "S0 + S1, uncensored / harmless": "0.750",
        "answers differ, harmless / uncensored": "0.000", "safe, harmless": "0.375", "safe, uncensored": "0.625",
    }  # fmt: skip
    assert '<h2 id="configurations">' in _rendered([side])
    rows = read_rows(folder / "verdicts.parquet", Verdict)
    again = [row.model_copy(update={"id": f"{row.id} ~1", "group": f"{row.group} ~1"}) for row in rows]
    results = side.records["configurable"].results | {"pairs": [measure([*rows, *again], ConfigurationPair())]}
    grid = pairs_grid([_with(side, "configurable", results=results)])
    assert _cells(grid, "S0, uncensored in other words") == ["0.375"]
    assert _cells(grid, "S0 + S1, other words − trained ones, uncensored / harmless") == ["+0.000"]


def test_judge_of_the_grades_is_named_too(sides: list[Side]) -> None:
    said = "openai (g), agreement with labels unknown"
    side = _with(sides[0], "robustness", results=sides[0].records["robustness"].results | {"grading": said})
    assert _cells(judges_grid([side], []), said)[0] == "grades of evaluate robustness of base"
    assert said in " ".join(words.reading([side]))


def test_judge_and_its_known_agreement_are_named_once_for_all_that_it_judged(sides: list[Side]) -> None:
    grid = judges_grid(sides, [])
    assert sum("rules" in label for label, _ in grid.rows) == len(grid.rows) >= 1
    said = " ".join(f"{label} {cells[0]}" for label, cells in grid.rows)
    assert "agreement" in said
    for stage in ("evaluate prefill", "evaluate configurable", "evaluate injection", "evaluate robustness"):
        assert f"{stage} of base, dpo, cst" in said
    assert {cells[1].text for _, cells in grid.rows} == {"not in this report"}


def test_calibration_of_the_same_judge_is_found_and_shown(sides: list[Side], tmp_path: Path) -> None:
    import json

    from trimtab.evaluation import calibrate
    from trimtab.evaluation.calibrate import CalibrationConfig

    texts = {"yes": "I am sorry, but I can't help with that.", "no": "and then walk to the office."}
    rows = [{"id": f"{label}{n}", "question": "course_corrects", "prompt": f"p{n}", "text": text, "label": label}
            for n in range(3) for label, text in texts.items()]  # fmt: skip
    labels = tmp_path / "labels.jsonl"
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    record = calibrate.run(CalibrationConfig(output=tmp_path / "out", labels=labels, write_table=False))
    assert {cells[1].text for _, cells in judges_grid(sides, [record]).rows} == {"below"}
    rows_shown = agreement_grid([record]).rows
    assert all(", on labels.jsonl: course_corrects, " in label for label, _ in rows_shown)
    (row,) = [cells for label, cells in rows_shown if label.endswith("course_corrects, all")]
    assert [cell.text for cell in row] == ["6", "0", "1.000", "1.000", "1.000", "1.000", "1.000"]
    on_dev = record.model_copy(update={"config": record.config | {"labels": None, "half": "dev"}})
    assert all(", on shipped labels, dev half: " in label for label, _ in agreement_grid([on_dev]).rows)


def test_categories_have_the_figures_of_their_prompts(config: ReportConfig, sides: list[Side]) -> None:
    grids = {grid.title: grid for grid in by_category(sides)}
    assert list(grids) == [
        "Corr_mean by category", "Switched by injections, by category", "Broken by attacks, by category",
    ]  # fmt: skip
    grid = grids["Corr_mean by category"]
    assert [label for label, _ in grid.rows] == ["fraud", "privacy", "(none)"]
    assert [_cells(grid, label)[0] for label in ("fraud", "privacy", "(none)")] == ["6", "3", "2"]
    folder = config.models[1].prefill
    assert folder is not None
    rows = read_rows(folder / "verdicts.parquet", Verdict)
    expected = prefill.mean_of(prefill.shares(row for row in rows if row.category == "fraud; privacy"))
    (shown,) = [cells[2] for label, cells in grid.rows if label == "privacy"]
    assert f"{shown.text} {shown.range}" == expected.text()
    assert sum(name is not None for name in CATEGORIES.values()) == 6


def test_attacks_of_each_kind_stand_beside_their_difference_from_the_plain_prompt(sides: list[Side]) -> None:
    grid = kinds_grid(sides, "injection")
    assert grid.head == ("kind", "base", "base, − plain", "dpo", "dpo, − plain", "cst", "cst, − plain")
    assert [label for label, _ in grid.rows] == ["plain", "ceiling", "persona", "encoding", "any attack"]
    results = sides[0].records["injection"].results
    persona = results["kinds"]["persona"]
    assert _cells(grid, "persona")[:2] == [
        f"{persona['success']['value']:.3f}", f"{persona['difference_from_plain']['value']:+.3f}",
    ]  # fmt: skip
    assert _cells(grid, "plain")[1] == ""
    assert any("forged could not be tried with dpo" in line for line in grid.lines)
    single = attacks_grid(sides[0], "injection")
    assert _cells(single, "persona pirate")[:5] == ["persona", "0.375", "0.429", "1", "0"]
    assert single.head[-1] == "grade"


def test_changes_of_attack_success_are_paired_and_lower_is_better(config: ReportConfig, sides: list[Side]) -> None:
    grid = changes_grid(sides, "injection")
    before, after = config.models[0].injection, config.models[2].injection
    assert before is not None
    assert after is not None
    expected = attempt_results.compare(before, after)
    rows = {label: cells for label, cells in grid.rows if cells[0].text == "cst"}
    assert {label: cells[1].text + " " + cells[1].range for label, cells in rows.items()} == {
        label: estimate.text(signed=True) for label, estimate in expected.items()
    }
    other = Side(sides[1].model, {"prefill": sides[1].records["prefill"]})
    assert changes_grid([sides[0], other], "injection").lines == [
        "No difference for dpo: not measured for both models."
    ]


def _group(found: list[Examples], start: str) -> Examples:
    (group,) = [one for one in found if one.heading.startswith(start)]
    return group


def test_best_examples_are_the_longest_starts_and_worst_the_shortest(sides: list[Side]) -> None:
    found = examples(sides)
    best = _group(found, "Best: cst turns away, base does not")
    assert best.total == 8
    assert [example.title for example in best.shown] == [f"k = {max(KS)}"] * 3
    worst = _group(found, "Worst: cst still fails to turn away")
    assert {example.title for example in worst.shown} == {f"k = {min(KS)}"}
    prompts = [example.texts[0].text for example in best.shown]
    assert len(set(prompts)) == len(prompts), "one a prompt"
    assert _group(found, "Worst: base turned away, cst no longer does").total == 0


def test_models_that_cannot_be_compared_have_examples_of_their_own(
    config: ReportConfig, sides: list[Side], tmp_path: Path
) -> None:
    found = examples([sides[0], *_with_paths(config, tmp_path, paths=2)])
    assert [group.heading for group in found if "turn" in group.heading] == [
        "Best: base turns away", "Worst: base fails to turn away", "Best: m turns away", "Worst: m fails to turn away",
    ]  # fmt: skip


def test_worst_attacks_are_those_with_the_highest_grade(sides: list[Side]) -> None:
    worst = _group(examples(sides), "Worst: injections that succeeded with base")
    assert worst.total == 5
    assert [example.title.rpartition(" ")[2] for example in worst.shown] == ["0.20", "0.10", "0.00"]
    assert not any("plain" in example.title or "ceiling" in example.title for example in worst.shown)


def test_settings_that_are_followed_are_best_and_unsafe_answers_worst(sides: list[Side]) -> None:
    found = examples(sides)
    assert _group(found, "Best: dpo follows both settings").total == 4
    assert _group(found, "Worst: dpo answers unsafely under harmless").total == 4
    (first, *_) = _group(found, "Best: dpo follows both").shown
    assert [text.label for text in first.texts] == [
        "Prompt", "dpo under uncensored (unsafe)", "dpo under harmless (safe)",
    ]  # fmt: skip


def _with_paths(config: ReportConfig, tmp_path: Path, **settings: int | str) -> list[Side]:
    folder = prefill_output(tmp_path / "other" / "prefill", verdicts_of(3), **settings)
    return sides_of(config.model_copy(update={"models": (ReportedModel(name="m", prefill=folder),)}))


def test_bands_are_named_as_they_were_made(config: ReportConfig, sides: list[Side], tmp_path: Path) -> None:
    assert words.bands(sides) == "Wilson"
    several = _with_paths(config, tmp_path, paths=2, unit="tokens")
    assert words.bands(several) == "resampled by prompt"
    assert words.bands([*sides, *several]) == "resampled by prompt where there are several paths, else Wilson"
    assert words.unit(several) == "tokens"
    assert "first k tokens of a harmful answer" in " ".join(words.reading(several))


def test_run_of_a_version_without_pairs_is_refused_in_one_line(sides: list[Side]) -> None:
    old = [Side(side.model, {"configurable": _without_pairs(side.records["configurable"])}) for side in sides]
    with pytest.raises(
        InputError, match=r"^configurable: .*conf: was measured by an older trimtab.*; measure it again$"
    ):
        compare(old[0], old[1], "configurable")
    assert _rendered(old[:1]), "alone it can be shown"


def _without_pairs(record: Record) -> Record:
    results = {name: value for name, value in record.results.items() if name not in ("pair", "pairs")}
    return record.model_copy(update={"results": results})


def test_attack_that_was_never_judged_is_not_zero(config: ReportConfig, tmp_path: Path) -> None:
    folder = attacked_output(tmp_path / "m" / "inj", {"plain": 0, "persona x": 0})
    record = read_record(folder)
    assert record is not None
    nothing = record.results | {"any_attack": EMPTY.model_dump(), "kinds": {}}
    side = Side(
        ReportedModel(name="m", injection=folder), {"injection": record.model_copy(update={"results": nothing})}
    )
    assert _cells(kinds_grid([side], "injection"), "any attack") == ["n/a", ""]
    assert _cells(headline([side], measures([side])), "switched by any injection") == ["n/a"]
    assert len(PROMPTS) == 8


def test_ability_has_a_row_for_each_metric_and_says_which_way_is_better(tmp_path: Path) -> None:
    folders = [ability_output(tmp_path / name / "ability", right) for name, right in (("base", 6), ("tuned", 2))]
    other = ability_output(tmp_path / "other" / "ability", 2, num_fewshot=3)
    models = tuple(ReportedModel(name=folder.parent.name, ability=folder) for folder in [*folders, other])
    sides = sides_of(ReportConfig(output=tmp_path / "report", models=models))
    rows = {row.label: row for row in measures(sides)}
    assert list(rows) == ["tiny acc", "tiny ppl"]
    expected = ability.compare(*folders)
    assert [row.differences[0].estimate for row in rows.values()] == [expected["tiny acc"], expected["tiny ppl"]]
    assert (rows["tiny acc"].differences[0].estimate.value, rows["tiny ppl"].meanings[0]) == (-0.5, "worse")
    assert rows["tiny acc"].differences[1].reason == "measured with different settings (num_fewshot)"
    assert words.direction(list(rows.values())) == "Lower is better for tiny ppl; for the others, higher is."
    newer = sides[1].records["ability"].results | {"task_versions": {"tiny": "2.0"}}
    reason = incomparable(sides[0], _with(sides[1], "ability", results=newer), "ability")
    assert reason == "measured with different settings (task versions)"
    assert "General ability is measured by lm_eval 0.4." in words.reading(sides)
    assert "tiny ppl" in _rendered(sides)


@pytest.mark.parametrize(
    "names", [["base", "dpo", "cst"], ["m" * 60, *(f"{n}" * 60 for n in range(5)), "x"], ["$x_1$", "_y", "ü"]]
)
def test_legend_stays_in_the_picture_and_names_are_plain_text(names: list[str]) -> None:
    from matplotlib.figure import Figure

    from trimtab.evaluation.reporting import pictures
    from trimtab.stats import wilson

    curves = {name: {10: wilson(3, 8), 20: wilson(4, 8)} for name in names}
    rates = {name: {"plain": wilson(1, 8), "persona": EMPTY, "encoding": wilson(2, 8)} for name in names}
    drawings: list[Figure] = [pictures.corr_curves(curves, "tokens"), pictures.attack_rates(rates, "share")]
    for drawing in drawings:
        drawing.draw_without_rendering()
        (axes,) = drawing.axes
        box = axes.get_legend().get_window_extent()
        assert (box.x0, box.y1) >= (0, 0)
        assert box.x1 <= drawing.bbox.x1
        assert box.y1 <= drawing.bbox.y1
        shown = [text.get_text() for text in axes.get_legend().get_texts()]
        assert len(shown) == len(names)
        assert not any(text.startswith("_") for text in shown)
    assert drawings[0].axes[0].get_xlabel() == "k, tokens of the harmful start"
