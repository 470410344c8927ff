"""Synthesis and export in an object store come out as they do on this machine; inputs may lie there as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from upath import UPath

from tests.synthesis.test_export import make_group, synthesized, with_flips
from tests.synthesis.test_shards import RECIPE, make_requests, write_generations
from trimtab.artifacts import read_record, require_record
from trimtab.cli import log_of
from trimtab.config import InputError
from trimtab.files import AnyPath, files_in, is_file, located, parquet_source
from trimtab.schemas import PlanRow, group_file, iter_groups, read_rows
from trimtab.sources import SourceConfig, read_requests
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.export import ExportConfig, run
from trimtab.synthesis.generating import Synthesis, planned_ids
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe
from trimtab.synthesis.recipes.derived import FlipRecipe, MixtureRecipe, flipped, mixed
from trimtab.synthesis.recipes.self_critique import SelfCritiqueRecipe, template_texts
from trimtab.synthesis.requests import read_summary, write_requests
from trimtab.synthesis.retries import attempts_of, plan_retry, quarantined, retry_folders
from trimtab.synthesis.run import preview_folder
from trimtab.synthesis.shards import assemble_shard
from trimtab.training.config import TrainingConfig
from trimtab.training.data import read_groups


def _assembled(output: AnyPath) -> list[dict[str, int]]:
    """Two shards of requests, planned, "generated" with one failure, retried, and assembled."""
    config = SynthesisConfig(output=output, recipe=RECIPE, engine={"type": "openai", "base_url": "x", "model": "m"})
    write_requests(output, (make_requests(4), [], {}), 2)
    synthesis = Synthesis(config, RECIPE, None, output)
    assert [path.name for path in synthesis.plan()] == ["00000-0.parquet", "00001-0.parquet"]
    assert synthesis.plan() == synthesis.plan()
    plan = read_rows(output / "plan", PlanRow)
    assert planned_ids(output).names() == sorted(row.id for row in plan)
    write_generations(output, "a", plan, bad=(plan[3].id,))
    first = [assemble_shard(synthesis._work(), shard) for shard in synthesis.shards]
    assert [count["groups"] for count in first] == [2, 4]
    assert [row.id for row in quarantined(output)] == [plan[3].id]
    assert plan_retry(output, ("",), 0.7) == 1
    (folder,) = retry_folders(output, "")
    assert (folder.name, attempts_of(output, ("",))) == ("001", 1)
    write_generations(folder, "a", read_rows(folder / "plan", PlanRow))
    return [assemble_shard(synthesis._work(), shard) for shard in synthesis.shards]


def test_shards_in_a_store_are_those_of_this_machine(tmp_path: Path, store: UPath) -> None:
    assert _assembled(store) == _assembled(tmp_path / "out")
    assert list(iter_groups(store)) == list(iter_groups(tmp_path / "out"))
    assert read_summary(store) == {"requests": 4, "shards": 2}
    assert quarantined(store) == []
    assert not is_file(store / "quarantine" / "00000.parquet")


def _files(folder: AnyPath, prefix: str = "") -> dict[str, Any]:
    """What lies below a folder: rows of Parquet files, texts of others; without what differs from run to run."""
    found: dict[str, Any] = {}
    for path in folder.iterdir():
        if path.is_dir():
            found |= _files(path, f"{prefix}{path.name}/")
        elif path.suffix == ".parquet":
            found[prefix + path.name] = pq.read_table(parquet_source(path)).to_pylist()
        elif path.name != "record.json":
            found[prefix + path.name] = path.read_text(encoding="utf-8")
    return found


def test_export_from_and_to_a_store_is_the_local_one(tmp_path: Path, store: UPath) -> None:
    shards = with_flips(make_group(0), make_group(1, size=4)), with_flips(make_group(2))
    formats = ("trl", "jsonl", "ranked", "dataset")
    found = []
    for base in (tmp_path, store):
        synthesized(base / "groups", *shards)
        config = ExportConfig(output=base / "pairs", groups=base / "groups", formats=formats)
        record = run(config)
        assert run(config) == record == read_record(base / "pairs")
        found.append((_files(base / "pairs"), record.fingerprint, record.counts))
    assert found[0] == found[1]
    assert found[0][2] == {"groups": 6, "pairs": 24, "shards": 2}
    (store / "pairs" / "record.json").unlink()
    files_in(store / "pairs" / "pairs")[0].unlink()
    run(ExportConfig(output=store / "pairs", groups=store / "groups", formats=formats))
    assert _files(store / "pairs") == found[0][0]


def test_card_names_no_bucket(store: UPath) -> None:
    recipe = {"type": "course_correction", "openers": f"{store}/secret/openers.txt"}
    synthesized(store / "groups", [make_group(0)], recipe=recipe)
    run(ExportConfig(output=store / "pairs", groups=store / "groups", formats=("dataset",)))
    card = (store / "pairs" / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "openers: openers.txt" in card
    assert "bucket" not in card


def test_group_file_that_is_damaged_in_a_store_is_named(store: UPath) -> None:
    synthesized(store / "groups", [make_group(0)])
    group_file(store / "groups").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^groups: memory://.*/groups/00000\.parquet: is not readable Parquet"):
        run(ExportConfig(output=store / "pairs", groups=store / "groups"))


def test_groups_in_a_store_are_inputs(store: UPath) -> None:
    synthesized(store / "groups", [make_group(0)], [make_group(1)])
    flips = list(flipped(FlipRecipe(groups=store / "groups", keep=False)))
    assert [group.id for group in flips] == [make_group(n).flip("uncensored", flips[0].system).id for n in (0, 1)]
    mixture = MixtureRecipe.model_validate({"parts": [{"path": str(store / "groups"), "weight": 2}]})
    assert len(list(mixed(mixture))) == 4
    training = TrainingConfig.model_validate({"output": "out", "data": [f"{store}/groups"]})
    assert [group for part in training.parts for group in read_groups(part)] == [make_group(0), make_group(1)]
    assert require_record("data", located(f"{store}/groups"), "synthesize").counts["groups"] == 2
    with pytest.raises(InputError, match=r"^data: memory://.*/absent: no such folder"):
        require_record("data", store / "absent", "synthesize")


def test_requests_and_texts_in_a_store_are_inputs(store: UPath) -> None:
    sample = SourceConfig().path
    (store / "rows.jsonl").write_text(sample.read_text(encoding="utf-8"), encoding="utf-8")
    remote = SourceConfig(data=f"{store}/rows.jsonl")
    assert read_requests(remote) == read_requests(SourceConfig())
    assert remote.identity() == SourceConfig().identity()
    (store / "openers.txt").write_text("Of course,\n\nSure,\n", encoding="utf-8")
    recipe = CourseCorrectionRecipe.model_validate({"openers": f"{store}/openers.txt"})
    assert recipe.opener_lines() == ("Of course,", "Sure,")
    (store / "critique.txt").write_text("{{ prompt }} {{ answer }}", encoding="utf-8")
    critique = SelfCritiqueRecipe.model_validate({"critique_request": f"{store}/critique.txt"})
    assert template_texts(critique)["critique_request"] == "{{ prompt }} {{ answer }}"


def test_places_are_written_as_the_user_wrote_them(store: UPath) -> None:
    config = SynthesisConfig.model_validate({"output": f"{store}/out"})
    assert yaml.safe_load(config.dump_yaml())["output"] == "memory://bucket/runs/out"
    assert config.identity() == SynthesisConfig.model_validate({"output": "elsewhere"}).identity()
    assert str(preview_folder(config)) == "memory://bucket/runs/out-preview"
    again = SynthesisConfig.model_validate(json.loads(config.model_dump_json()))
    assert again == config


def test_log_of_an_output_in_a_store_is_local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: UPath) -> None:
    monkeypatch.setenv("TRIMTAB_HOME", str(tmp_path))
    log = log_of("synthesize", store / "out")
    assert log == tmp_path / "logs" / "memory%3A%2F%2Fbucket%2Fruns%2Fout.log"
    assert len(log_of("synthesize", store / ("x" * 400)).name) < 256
    assert log_of("synthesize", Path("runs/out")) == Path("runs/out.log")
    assert log_of("serve", None) == Path("trimtab-serve.log")
