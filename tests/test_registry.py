"""The registry: versions, aliases, and gates that a model must pass before an alias means it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from trimtab import models, registry
from trimtab.artifacts import Outcome, run_stage
from trimtab.cli import main
from trimtab.config import Config, InputError
from trimtab.registry import Gates, PromoteConfig


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def _register(model: Path, name: str = "guard") -> str:
    return registry.register(name, model, models.fingerprint(model))


def _evaluated(folder: Path, stage: str, model: str, results: dict[str, Any]) -> Path:
    def work(output: Path) -> Outcome:
        return Outcome(counts={}, results=results)

    run_stage(stage, folder, Config(), {"model": model}, work)
    return folder


def _rate(value: float | None, low: float = 0.0, high: float = 1.0) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def test_versions_count_up_and_the_same_folder_keeps_its_own(model: Path, tmp_path: Path) -> None:
    assert _register(model) == "guard@1"
    assert _register(model) == "guard@1"
    other = Path(shutil.copytree(model, tmp_path / "other"))
    assert _register(other) == "guard@2"
    assert _register(model, "second") == "second@1"
    assert registry.names() == ["guard", "second"]
    assert models.resolve("guard@2") == other.resolve()


def test_model_that_changed_or_went_away_is_refused(model: Path) -> None:
    _register(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 7}))
    with pytest.raises(InputError, match=r"guard@1: .* has changed since it was registered; register it again"):
        models.resolve("guard@1")
    shutil.rmtree(model)
    with pytest.raises(InputError, match=r"guard@1: its folder .* is gone; restore it or register the model again"):
        models.resolve("guard@1")


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("absent@1", "is not registered; registered names: guard"),
        ("guard@7", "no such version; guard has 1"),
        ("guard@production", "no such version; guard has 1"),
    ],
)
def test_reference_that_means_nothing(model: Path, reference: str, problem: str) -> None:
    _register(model)
    with pytest.raises(InputError, match=f"^model: {reference}: {problem}$"):
        models.resolve(reference)


def test_alias_moves_to_a_model_that_passes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _register(model)
    corr = _evaluated(tmp_path / "corr", "evaluate prefill", models.fingerprint(model), {"corr_mean": _rate(0.2)})
    for arguments in (["promote", "--set", "model=guard@1", "--set", f"prefill={corr}"], ["list"]):
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["model", *arguments])
    promoted, listed = capsys.readouterr().out.splitlines()
    assert promoted == "guard@production is now guard@1 (corr_mean 0.200)"
    assert listed.startswith("guard@1  20")
    assert listed.endswith(f"  {model.resolve()}  @production")


def _promote(model: Path, gates: Gates, **folders: Path) -> dict[str, float]:
    return registry.promote(PromoteConfig(model=_register(model), gates=gates, **folders))


def test_gates_on_all_measures(model: Path, tmp_path: Path) -> None:
    print_ = models.fingerprint(model)
    folders = {
        "prefill": _evaluated(tmp_path / "a", "evaluate prefill", print_, {"corr_mean": _rate(0.2, 0.1)}),
        "configurable": _evaluated(tmp_path / "b", "evaluate configurable", print_,
                                   {"s0": _rate(0.5), "s1": _rate(0.9)}),
        "retention": _evaluated(tmp_path / "c", "evaluate retention", print_, {"nll": _rate(1.0, 0.9, 1.1)}),
    }  # fmt: skip
    gates = Gates(corr_mean=0.15, s0=0.4, s1=0.8, benign_nll=1.05)
    assert _promote(model, gates, **folders) == {"corr_mean": 0.2, "s0": 0.5, "s1": 0.9, "benign_nll": 1.0}
    assert models.resolve("guard@production") == model.resolve()
    with pytest.raises(InputError, match=r"^gates.s1: 0.95: the model has 0.900 \(value\); train further, or change"):
        _promote(model, Gates(s1=0.95), **folders)
    cautious = Gates(corr_mean=0.15, bound="interval")
    with pytest.raises(InputError, match=r"^gates.corr_mean: 0.15: the model has 0.100 \(interval\)"):
        _promote(model, cautious, **folders)
    with pytest.raises(InputError, match=r"^gates.benign_nll: 1.05: the model has 1.100 \(interval\)"):
        _promote(model, Gates(corr_mean=None, benign_nll=1.05, bound="interval"), **folders)


def test_refused_promotion_leaves_the_alias_where_it_was(model: Path, tmp_path: Path) -> None:
    print_ = models.fingerprint(model)
    good = _evaluated(tmp_path / "good", "evaluate prefill", print_, {"corr_mean": _rate(0.2)})
    nothing = _evaluated(tmp_path / "nothing", "evaluate prefill", print_, {"corr_mean": _rate(None)})
    other = _evaluated(tmp_path / "other", "evaluate prefill", "another", {"corr_mean": _rate(0.9)})
    _promote(model, Gates(), prefill=good)
    second = Path(shutil.copytree(model, tmp_path / "second"))
    reference = registry.register("guard", second, print_)
    for folders, problem in (
        ({}, "prefill: none: gate corr_mean needs it; give the output of trimtab evaluate prefill"),
        ({"prefill": nothing}, "gates.corr_mean: 0.1: the model has nothing was scored"),
        ({"prefill": other}, "prefill: .*: is an evaluation of another model; evaluate guard@2"),
    ):
        with pytest.raises(InputError, match=problem):
            registry.promote(PromoteConfig(model=reference, **folders))
    assert registry.aliases("guard") == {"production": 1}


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", ".hidden"])
def test_names_that_are_none(model: Path, name: str) -> None:
    with pytest.raises(InputError, match="is no name of a model"):
        _register(model, name)
