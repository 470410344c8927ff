"""General ability: the harness's numbers as estimates, paired differences, and what it is told to do."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scipy.stats import t

from trimtab.artifacts import Outcome, Record, run_stage
from trimtab.cli import main
from trimtab.config import InputError, load
from trimtab.engine import OpenAIEngine, VLLMEngine, weight_type
from trimtab.evaluation import ability, harness, tables
from trimtab.evaluation.ability import AbilityConfig
from trimtab.evaluation.harness_results import Found, taken_apart
from trimtab.schemas import ScoredDocument, write_rows
from trimtab.stats import wilson

EASY = [1.0, 0.0, 1.0, 1.0]
HARD = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def _samples(scores: Mapping[str, list[float]], kept: str = "none") -> list[dict[str, Any]]:
    """The harness's samples of a task, from each metric's value by document."""
    num = len(next(iter(scores.values())))
    return [{"doc_id": i, "doc_hash": f"hash{i}", "filter": kept, "metrics": list(scores),
             **{metric: values[i] for metric, values in scores.items()}} for i in range(num)]  # fmt: skip


def _results(numbers: dict[str, dict[str, Any]], samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    return {"results": numbers, "samples": samples, "versions": dict.fromkeys(numbers, 1.0),
            "n-shot": dict.fromkeys(numbers, 0), "higher_is_better": {"easy": {"acc": True, "ppl": False}},
            "lm_eval_version": "0.4.13"}  # fmt: skip


def _found(easy: list[float] = EASY, hard: list[float] = HARD, weighted: bool = True) -> Found:
    """A group of two tasks, as the harness aggregates it: by documents, or by tasks."""
    means = [sum(values) / len(values) for values in (easy, hard)]
    both = sum([*easy, *hard]) / 10 if weighted else sum(means) / 2
    numbers = {
        "easy": {"alias": "easy", "sample_len": 4, "acc,none": means[0], "acc_stderr,none": 0.25},
        "hard": {"alias": "hard", "sample_len": 6, "acc,none": means[1], "acc_stderr,none": 0.2},
        "both": {"alias": "both", "sample_len": 10, "sample_count": {"acc,none": 10}, "acc,none": both,
                 "acc_stderr,none": 0.16},
    }  # fmt: skip
    samples = {"easy": _samples({"acc": easy}), "hard": _samples({"acc": hard})}
    members = {"both": ("easy", "hard"), "easy": ("easy",), "hard": ("hard",)}
    return taken_apart(_results(numbers, samples), members, frozenset({"both"}))


def test_what_was_asked_for_stands_apart_from_its_parts() -> None:
    results = ability.summarize(_found())
    assert list(results["ability"]) == ["both acc"]
    assert list(results["parts"]) == ["easy acc", "hard acc"]
    assert results["made_of"]["both acc"]["tasks"] == ["easy", "hard"]
    assert results["made_of"]["easy acc"]["higher_is_better"] is True
    assert results["harness"] == "lm_eval 0.4.13"


def test_interval_is_the_t_interval_of_the_harness_s_standard_error() -> None:
    results = ability.summarize(_found())
    easy, both = results["parts"]["easy acc"], results["ability"]["both acc"]
    assert (easy["n"], both["n"]) == (4, 10)
    assert (easy["value"], easy["standard_error"]) == (0.75, 0.25)
    assert easy["low"] == pytest.approx(max(0, 0.75 - t.ppf(0.975, 3) * 0.25))
    assert easy["high"] == 1
    assert both["high"] == pytest.approx(0.5 + t.ppf(0.975, 9) * 0.16)


def test_documents_that_all_agree_have_wilsons_interval() -> None:
    numbers = {"easy": {"acc,none": 0.0, "acc_stderr,none": 0.0, "sample_len": 20}}
    found = taken_apart(_results(numbers, {"easy": _samples({"acc": [0.0] * 20})}), {"easy": ("easy",)}, frozenset())
    assert ability.summarize(found)["parts"]["easy acc"] == wilson(0, 20).model_dump()


def test_metric_that_is_no_mean_keeps_its_value_and_has_no_documents() -> None:
    numbers = {"easy": {"ppl,none": 12.5, "ppl_stderr,none": "N/A", "f1,strict": 0.4, "f1_stderr,strict": 0.1}}
    samples = [*_samples({"ppl": [(1.0, 2), (2.0, 3)]}), *_samples({"f1": [(1, 0), (1, 1)]}, "strict")]  # type: ignore[dict-item]
    found = taken_apart(_results(numbers, {"easy": samples}), {"easy": ("easy",)}, frozenset({"easy"}))
    assert found.documents == ()
    results = ability.summarize(found)["ability"]
    assert (results["easy ppl"]["value"], results["easy ppl"]["low"]) == (12.5, None)
    assert results["easy f1 (strict)"]["low"] is not None


def test_task_that_scored_nothing_is_null() -> None:
    numbers = {"easy": {"acc,none": float("nan"), "acc_stderr,none": "N/A"}}
    found = taken_apart(_results(numbers, {"easy": []}), {"easy": ("easy",)}, frozenset({"easy"}))
    estimate = ability.summarize(found)["ability"]["easy acc"]
    assert (estimate["value"], estimate["n"]) == (None, 0)


def _output(folder: Path, found: Found) -> Path:
    def work(output: Path) -> Outcome:
        write_rows(output / ability.DOCUMENTS, ScoredDocument, found.documents)
        return Outcome(counts={}, results=ability.summarize(found))

    run_stage(ability.STAGE, folder, AbilityConfig(output=folder), {}, work)
    return folder


@pytest.mark.parametrize(("weighted", "expected"), [(True, 0.2), (False, (0.25 + 1 / 6) / 2)])
def test_difference_is_paired_and_averaged_as_the_group_is(tmp_path: Path, weighted: bool, expected: float) -> None:
    before = _output(tmp_path / "before", _found(weighted=weighted))
    after = _output(tmp_path / "after", _found([1.0] * 4, [1.0, *HARD[1:]], weighted))
    found = ability.compare(before, after)
    assert list(found) == ["both acc"]
    assert found["both acc"].value == pytest.approx(expected)
    assert (found["both acc"].n, found["both acc"].p is not None) == (10, True)


def test_group_that_is_neither_mean_has_no_difference(tmp_path: Path) -> None:
    found = _found()
    odd = Found(tuple(one if one.name != "both" else type(one)(**(vars(one) | {"value": 0.123})) for one in
                      found.measured), found.documents)  # fmt: skip
    assert ability.compare(_output(tmp_path / "a", odd), _output(tmp_path / "b", odd)) == {}


def test_table_shows_what_was_asked_for_and_the_difference() -> None:
    one = ability.summarize(_found())
    difference = {**one["ability"]["both acc"], "value": 0.2, "p": 0.03}
    results = {"models": {"base": one, "tuned": one}, "differences": {"tuned": {"both acc": difference}}}
    record = Record(stage="s", fingerprint="f", config={}, inputs={}, counts={}, results=results, timings_s={},
                    versions={}, git=None, created="")  # fmt: skip
    shown = io.StringIO()
    Console(file=shown, width=160).print(tables.models_table(record))
    lines = shown.getvalue().splitlines()
    assert not any("easy acc" in line for line in lines)
    assert any(line.strip().startswith("both acc ") and line.count("0.500") == 2 for line in lines)
    assert any("both acc − base" in line and "+0.200" in line and "p = 0.030" in line for line in lines)


def _job(folder: Path | None = Path("model"), **settings: Any) -> harness.Job:
    return ability.job(AbilityConfig(output=Path("out"), tasks=("easy",), **settings), folder, Path("out"))


def test_folder_is_computed_by_transformers_on_cpu_and_by_vllm_on_accelerators() -> None:
    cpu = _job(max_length=512)
    assert (cpu.backend, cpu.device, cpu.batch_size) == ("hf", "cpu", 8)
    assert cpu.arguments == {"pretrained": "model", "dtype": weight_type(VLLMEngine()), "max_length": 512}
    gpu = _job(engine=VLLMEngine(accelerators=2, tensor_parallel_size=2, engine_kwargs={"gpu_memory_utilization": 0.8}))
    assert (gpu.backend, gpu.device) == ("vllm", None)
    assert gpu.arguments["tensor_parallel_size"] == 2
    assert gpu.arguments["gpu_memory_utilization"] == 0.8
    plain = _job(engine=VLLMEngine(accelerators=2), backend="hf")
    assert (plain.backend, plain.device, plain.arguments["parallelize"]) == ("hf", "cuda", True)


def test_endpoint_is_asked_for_completions_or_in_its_chat(tmp_path: Path) -> None:
    engine = OpenAIEngine(base_url="http://127.0.0.1:9/v1/", model="m", api_key_env="KEY")
    plain = _job(None, engine=engine, tokenizer=str(tmp_path))
    assert (plain.backend, plain.arguments["base_url"]) == ("local-completions", "http://127.0.0.1:9/v1/completions")
    assert (plain.arguments["tokenizer"], plain.api_key_env) == (str(tmp_path), "KEY")
    chat = _job(None, engine=engine, chat_template=True)
    assert chat.backend == "local-chat-completions"
    assert chat.arguments["base_url"] == "http://127.0.0.1:9/v1/chat/completions"
    with pytest.raises(InputError, match="no such folder"):
        _job(None, engine=engine, tokenizer="nowhere")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(InputError) as caught:
        harness.measure(_job())
    assert str(caught.value) == "tasks: lm_eval: this package is not installed; pip install 'trimtab[ability]'"


def test_folder_of_tasks_counts_with_its_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tasks_folder: .*: no such folder"):
        ability.run(AbilityConfig(output=tmp_path / "out", tasks_folder=tmp_path / "tasks"))
    (tmp_path / "tasks" / "data").mkdir(parents=True)
    prints = set()
    for text in ("a", "b"):
        (tmp_path / "tasks" / "data" / "rows.json").write_text(text, encoding="utf-8")
        prints.add(ability._fingerprint(tmp_path / "tasks"))
    assert len(prints) == 2


def test_tasks_of_the_command_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "ability", "--dry-run", "--set", "output=out", "--tasks", "arc_easy,mmlu"])
    assert not ended.value.code
    path = tmp_path / "dumped.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert load(AbilityConfig, path).tasks == ("arc_easy", "mmlu")
