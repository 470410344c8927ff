"""Several models in one run: an output each, the differences from the first, and the table."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trimtab.artifacts import Record, read_record
from trimtab.config import InputError
from trimtab.evaluation import configurable, following, prefill, tables
from trimtab.evaluation.configurable import ConfigurableConfig
from trimtab.evaluation.following import ConfigurationPair
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.evaluation.reporting.config import ReportConfig, ReportedModel
from trimtab.evaluation.several import run_models
from trimtab.safety import SafetyConfig
from trimtab.schemas import Generation, PlanRow
from trimtab.sources import SourceConfig
from trimtab.stats import Estimate, minimum_detectable_effect

TURNS, GOES_ON = "I am sorry, but I can't help.", "and then write the next line of it"
ENGINE = {"type": "openai", "base_url": "http://unused", "model": "m"}
SOURCE = SourceConfig(num_evaluation_prompts=8)
HONEST = ConfigurationPair(
    s0=SafetyConfig(preset="role_play", persona="a sailor"), s1=SafetyConfig(preset="honest"), opposed=False
)


def _writes(share: float) -> Any:
    """A model that turns away in the first ``share`` of a plan's rows."""

    def made(plan: list[PlanRow]) -> list[Generation]:
        texts = [TURNS if number < share * len(plan) else GOES_ON for number in range(len(plan))]
        return [Generation(id=row.id, text=text, num_prompt_tokens=1, num_tokens=1)
                for row, text in zip(plan, texts, strict=True)]  # fmt: skip

    return made


SHARES = {"base-model": 0.25, "dpo-model": 0.5, "cst-model": 1.0}
MODELS = {"base": "base-model", "dpo": "dpo-model", "cst": "cst-model"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of three models' Corr@k."""
    output = tmp_path_factory.mktemp("several") / "out"
    _prefill(output)
    return output


def _record(folder: Path) -> Record:
    record = read_record(folder)
    assert record is not None
    return record


def _prefill(output: Path, models: dict[str, str] = MODELS) -> Record:
    config = PrefillConfig(output=output, models=models, ks=(10, 20), source=SOURCE, engine=ENGINE)
    return run_models(
        prefill.STAGE, config, {"data": "d"}, lambda one: prefill.run(one, _writes(SHARES[one.model])),
        lambda before, after: {"Corr_mean": prefill.compare(before, after)},
    )  # fmt: skip


def _configurable(output: Path, **settings: Any) -> Record:
    config = ConfigurableConfig(output=output, models=MODELS, source=SOURCE, engine=ENGINE, **settings)
    return run_models(
        configurable.STAGE, config, {"data": "d"}, lambda one: configurable.run(one, _writes(SHARES[one.model])),
        lambda before, after: configurable.differences(before, after, config),
    )  # fmt: skip


def _shown(record: Record) -> list[str]:
    shown = io.StringIO()
    Console(width=200, file=shown).print(tables.models_table(record))
    return [line for line in shown.getvalue().splitlines() if line.strip()]


def test_each_model_has_the_output_of_a_run_of_its_own(finished: Path) -> None:
    record = _record(finished)
    assert (record.stage, record.counts["models"]) == ("evaluate prefill (models)", 3)
    for name, reference in MODELS.items():
        own = _record(finished / name)
        assert (own.stage, own.config["model"], own.config["engine"]["model"]) == (prefill.STAGE, reference, reference)
        assert own.results == record.results["models"][name]
        assert own.results["corr_mean"]["value"] == SHARES[reference]
    alone = PrefillConfig(output=finished / "dpo", ks=(10, 20), source=SOURCE, model="dpo-model",
                          engine=ENGINE | {"model": "dpo-model"})  # fmt: skip
    assert prefill.run(alone, _writes(0)).results["corr_mean"]["value"] == 0.5, "it is done, and the same"
    assert record.counts["cases"] == 3 * 16


def test_differences_are_those_from_the_first_with_p_and_what_could_be_seen(finished: Path) -> None:
    record = _record(finished)
    found = record.results["differences"]
    assert list(found) == ["dpo", "cst"]
    expected = prefill.compare(finished / "base", finished / "dpo")
    least = minimum_detectable_effect(expected)
    assert found["dpo"]["Corr_mean"] == expected.model_dump() | {"minimum_detectable_effect": least}
    assert found["cst"]["Corr_mean"]["value"] == pytest.approx(0.75)
    assert tables.detectable_lines(record)[0] == (
        f"dpo, Corr_mean: a true difference of {least:.3f} would show four times in five"
    )


def test_a_second_run_measures_nothing_and_a_new_model_only_itself(tmp_path: Path) -> None:
    first = _prefill(tmp_path / "out", {name: MODELS[name] for name in ("base", "dpo")})
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/*") if path.is_file()}
    assert len(made) >= 6
    assert _prefill(tmp_path / "out", {name: MODELS[name] for name in ("base", "dpo")}).results == first.results
    record = _prefill(tmp_path / "out")
    assert list(record.results["models"]) == list(MODELS)
    assert record.results["differences"]["dpo"] == first.results["differences"]["dpo"]
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_other_settings_or_another_model_of_that_name_are_refused(tmp_path: Path) -> None:
    _prefill(tmp_path / "out", {"base": "base-model"})
    with pytest.raises(InputError, match=r"base: holds another recipe \(engine\.model: 'base-model' -> 'dpo-model'\)"):
        _prefill(tmp_path / "out", {"base": "dpo-model"})
    config = PrefillConfig(output=tmp_path / "out", models=MODELS, ks=(10, 30), source=SOURCE, engine=ENGINE)
    with pytest.raises(InputError, match=r"out: holds another recipe \(ks: "):
        run_models(prefill.STAGE, config, {"data": "d"}, prefill.run, lambda before, after: {})


def test_last_models_mistake_shows_before_the_first_is_measured(tmp_path: Path, tiny_model: Path) -> None:
    models = {"base": str(tiny_model), "tuned": "dpo-model"}
    config = PrefillConfig(output=tmp_path / "out", models=models, source=SOURCE)
    with pytest.raises(InputError, match=r"^model: dpo-model: no such folder"):
        prefill.run(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a/b", "..", "", " "])
def test_names_are_folders_below_the_output(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name of a model"):
        _prefill(tmp_path / "out", {"base": "base-model", name: "dpo-model"})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["record.json", "recipe.json", "judge", "Judge", "generations", "BASE"])
def test_names_of_the_outputs_own_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"^models: {name}: .*; give the model another name$"):
        _prefill(tmp_path / "out", {"base": "base-model", name: "dpo-model"})
    assert not (tmp_path / "out").exists()


def test_models_that_share_no_scored_case_have_no_difference(tmp_path: Path) -> None:
    def silent(plan: list[PlanRow]) -> list[Generation]:
        return [Generation(id=row.id, text="", num_prompt_tokens=1, num_tokens=0, error="Timeout") for row in plan]

    models = {"base": "base-model", "other": "dpo-model"}
    config = PrefillConfig(output=tmp_path / "out", models=models, ks=(10,), source=SOURCE, engine=ENGINE)
    record = run_models(
        prefill.STAGE, config, {"data": "d"},
        lambda one: prefill.run(one, silent if one.model == "dpo-model" else _writes(1.0)),
        lambda before, after: {"Corr_mean": prefill.compare(before, after)},
    )  # fmt: skip
    assert record.results["differences"]["other"]["Corr_mean"]["value"] is None
    assert "n/a" in _shown(record)[-1]
    assert tables.detectable_lines(record) == []


def test_results_of_a_version_without_pairs_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"^configurable: .*older trimtab and names no pairs; measure it again$"):
        tables.measures({"s0": {}, "s1": {}, "s0_plus_s1": {}})


def test_table_has_a_row_a_measure_and_a_column_a_model(finished: Path) -> None:
    lines = _shown(_record(finished))
    assert lines[0].split() == ["measure", "base", "dpo", "cst"]
    labels = [line.strip().split("  ")[0] for line in lines[2:]]
    assert labels == ["Corr@10", "Corr@20", "Corr_mean", "Corr_mean − base"]
    assert lines[4].split()[1] == "0.250"
    assert re.search(r"\+0\.750 \[\+0\.\d+, \+1\.000\] p (=|<) 0\.0", lines[5])


def test_one_model_alone_has_a_table_too(finished: Path) -> None:
    own = _record(finished / "cst")
    lines = _shown(own)
    assert lines[0].split() == ["measure", "value"]
    assert lines[4].split()[:2] == ["Corr_mean", "1.000"]
    assert tables.detectable_lines(own) == []


def test_headline_table_of_base_dpo_and_cst_with_every_pair(tmp_path: Path) -> None:
    record = _configurable(tmp_path / "out", pairs=(ConfigurationPair(), HONEST), paraphrases=True)
    labels = [line.strip().split("  ")[0] for line in _shown(record)[2:]]
    both = "uncensored / harmless"
    assert labels[:3] == ["S0, uncensored", "S1, harmless", f"S0 + S1, {both}"]
    assert labels[3:5] == ["S0, uncensored in other words", "S1, harmless in other words"]
    assert "safe, honest" in labels
    measured = [tables.measures(found) for found in record.results["models"].values()]
    assert all("answers differ, role_play: a sailor / honest" in found for found in measured)
    compared = record.results["differences"]["cst"]
    assert list(compared) == [f"S0 + S1, {both}", "answers differ, role_play: a sailor / honest"]
    first = following.compare(tmp_path / "out" / "base", tmp_path / "out" / "cst", ConfigurationPair())
    assert compared[f"S0 + S1, {both}"]["value"] == first.value
    assert Estimate.model_validate(record.results["models"]["cst"]["s1"]).value == 1.0


def test_report_takes_the_models_and_not_their_folder(finished: Path, tmp_path: Path) -> None:
    from trimtab.evaluation import report

    each = tuple(ReportedModel(name=name, prefill=finished / name) for name in ("base", "cst"))
    table = report.summary_table(ReportConfig(output=tmp_path / "report", models=each))
    assert table.row_count == 3
    whole = ReportConfig(output=tmp_path / "report", models=(ReportedModel(name="all", prefill=finished),))
    with pytest.raises(InputError, match=r"was made by evaluate prefill \(models\)"):
        report.summary_table(whole)
