"""Which model each output is of: names, weights, folders of outputs, and what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.evaluation.outputs import (
    attacked_output,
    configurable_output,
    prefill_output,
    retention_output,
    training_output,
    verdicts_of,
)
from trimtab.artifacts import Outcome, run_stage
from trimtab.config import InputError, load
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.evaluation.reporting.config import ReportConfig, ReportedModel
from trimtab.evaluation.reporting.runs import sides_of, with_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pipeline leaves it: base/, tuned/, train/; the fixtures' weights are named by their folder."""
    folder = tmp_path_factory.mktemp("runs")
    for name, num_yes in (("base", 2), ("tuned", 5)):
        prefill_output(folder / name / "prefill", verdicts_of(num_yes), model=f"runs/{name}-weights/model")
        configurable_output(folder / name / "configurable", num_yes, model=f"another-way-to/{name}-weights")
    training_output(folder / "train")
    return folder


@pytest.fixture(scope="module")
def odd(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs and with what is none, or one too many."""
    folder = tmp_path_factory.mktemp("odd")
    for name in ("base", "tuned", "train"):
        (folder / name).symlink_to(runs / name)
    (folder / "empty").mkdir()
    (folder / "open").mkdir()
    (folder / "open" / "recipe.json").write_text("{}", encoding="utf-8")
    training_output(folder / "other")
    run_stage("ask endpoint", folder / "endpoint", PrefillConfig(output=Path("x")), {}, lambda _: Outcome(counts={}))
    return folder


def _models(*given: str | Path) -> dict[str, list[str]]:
    config = with_runs(ReportConfig(runs=tuple(map(str, given))))
    return {side.name: list(side.records) for side in sides_of(config)}


def test_outputs_of_the_same_weights_are_one_model(runs: Path) -> None:
    given = [runs / "base" / "prefill", runs / "tuned" / "prefill", runs / "base" / "configurable"]
    assert _models(*given) == {"base-weights": ["prefill", "configurable"], "tuned-weights": ["prefill"]}
    assert list(_models(*given[1:])) == ["tuned-weights", "base-weights"], "the first run's model is the baseline"


def test_names_are_the_users_and_go_to_all_outputs_of_those_weights(runs: Path) -> None:
    given = [f"before={runs / 'base' / 'prefill'}", runs / "base" / "configurable", f"after={runs / 'tuned'}"]
    kinds = ["prefill", "configurable"]
    assert _models(*given) == {"before": kinds, "after": kinds}


def test_folder_of_outputs_stands_for_all_of_them(runs: Path) -> None:
    config = with_runs(ReportConfig(runs=(f"a={runs / 'base'}", f"b={runs / 'tuned'}", str(runs / "train"))))
    assert [model.name for model in config.models] == ["a", "b"]
    assert config.training == runs / "train"
    walked = with_runs(ReportConfig(runs=(str(runs),)))
    assert [model.name for model in walked.models] == ["base-weights", "tuned-weights"]
    assert walked.training == runs / "train"


def test_run_of_several_models_brings_their_names(runs: Path, tmp_path: Path) -> None:
    output = tmp_path / "several"
    for name in ("base", "tuned"):
        prefill_output(output / name, verdicts_of(3))
    config = PrefillConfig(output=output, models={"base": "x", "tuned": "y"})
    results = {"models": {"base": {}, "tuned": {}}, "differences": {}}
    outcome = Outcome(counts={}, results=results)
    run_stage("evaluate prefill (models)", output / "all", config, {}, lambda folder: outcome)
    for name in ("base", "tuned"):
        os.rename(output / name, output / "all" / name)
    assert _models(output / "all") == {"base": ["prefill"], "tuned": ["prefill"]}
    with pytest.raises(InputError, match=r"measured several models, which have names; leave NAME= out$"):
        _models(f"mine={output / 'all'}")


def test_every_kind_of_evaluation_is_taken(tmp_path: Path) -> None:
    given = [
        prefill_output(tmp_path / "m" / "a", verdicts_of(2)), configurable_output(tmp_path / "m" / "b", 2),
        retention_output(tmp_path / "m" / "c", 0.1), attacked_output(tmp_path / "m" / "d", {"plain": 1, "x": 2}),
        attacked_output(tmp_path / "m" / "e", {"plain": 1, "x": 2}, "robustness"),
    ]  # fmt: skip
    kinds = ["prefill", "configurable", "injection", "robustness", "retention"]
    assert _models(*given) == {"smollm2-135m": kinds}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], r"^runs: none: nothing to report; give outputs of evaluations: trimtab report FOLDER"),
        (["absent"], r"^runs: .*absent: no such folder; give the output of an evaluation, as FOLDER or NAME=FOLDER$"),
        (["m=absent"], r"^runs: .*absent: no such folder"),
        (["train"], r"^runs: .*train: no evaluation is among them"),
        (["base/prefill", "x=base"], r"^runs: .*prefill: is a second evaluate prefill of x"),
        (["m=base", "m=tuned"], r"^runs: .*: two different models are called m; name them: NAME=FOLDER$"),
        (["a=base/prefill", "b=base/prefill", "base/configurable"],
         r"^runs: .*configurable: is of a model that has several names \(a, b\); say which: NAME=FOLDER$"),
        (["base", "train", "other"], r"^runs: .*other: is a second training, and a report shows one; leave one out$"),
        (["empty"], r"^runs: .*empty: holds no output of trimtab"),
        (["open"], r"^runs: .*open: has no record\.json \(unfinished\); run it to its end first$"),
        (["endpoint"], r"^runs: .*endpoint: was made by ask endpoint, which a report doesn't show; give those of "),
        ([f"{'n' * 61}=base"], r"the name has 61 characters; use at most 60$"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_apart_or_read_is_one_line(
    odd: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], line: str
) -> None:
    monkeypatch.chdir(odd)
    with pytest.raises(InputError, match=line):
        _models(*given)


def test_report_that_was_broken_off_inside_the_folder_is_no_run_of_it(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "base").symlink_to(runs / "base")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "recipe.json").write_text("{}", encoding="utf-8")
    config = ReportConfig(runs=(str(tmp_path),), output=tmp_path / "report")
    assert [model.name for model in with_runs(config).models] == ["base-weights"]
    with pytest.raises(InputError, match=r"report: has no record\.json"):
        with_runs(config.model_copy(update={"output": tmp_path / "other"}))


def test_model_without_an_output_is_refused(runs: Path) -> None:
    models = (ReportedModel(name="a", prefill=runs / "base" / "prefill"), ReportedModel(name="b"))
    line = r"^models\.1: b: names no output of an evaluation; give one of prefill, .*, or leave the model out$"
    with pytest.raises(InputError, match=line):
        with_runs(ReportConfig(models=models))


def test_runs_and_models_exclude_one_another(runs: Path) -> None:
    config = load(ReportConfig, None, [f"runs=[{runs}]", "models=[{name: a}]"])
    with pytest.raises(InputError, match="can't be given together with models"):
        with_runs(config)


def test_folders_with_odd_names_reach_the_configuration(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    from trimtab.cli import main

    monkeypatch.chdir(tmp_path)
    odd = ["a b, [c]=é", "mine=x: y", "plain"]
    with pytest.raises(SystemExit):
        main(["report", *odd, "--set", "title=T", "--dry-run"])
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["runs"], printed["title"]) == (odd, "T")
    assert re.fullmatch(r"runs.report", printed["output"])
    assert list(tmp_path.iterdir()) == []
