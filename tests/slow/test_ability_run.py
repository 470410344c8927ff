"""The lm-eval-harness on the tiny model, offline, with tasks of a folder: scores, endpoints, resuming, plain errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from trimtab.artifacts import Record
from trimtab.config import InputError
from trimtab.engine import OpenAIEngine
from trimtab.evaluation import ability, harness, tables
from trimtab.evaluation.ability import AbilityConfig
from trimtab.schemas import ScoredDocument, read_rows

pytestmark = pytest.mark.slow

SUMS = [(a, b) for a in range(1, 6) for b in range(1, 5)]
SOURCE = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
  cache_dir: {cache}
test_split: test
doc_to_text: "{{{{question}}}} Answer:"
metadata:
  version: 1.0
"""
CHOOSE = """
task: tiny_sums
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = """
task: tiny_replies
output_type: generate_until
doc_to_target: reply
generation_kwargs: {until: ["."], max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of three choices and one of free answers, on twenty sums in a JSON file."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [{"question": f"What is {a} plus {b}?", "choices": [str(a + b), str(a + b + 1), str(a + b + 7)],
             "answer": 0, "reply": str(a + b)} for a, b in SUMS]  # fmt: skip
    data = folder / "sums.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = SOURCE.format(data=data, cache=tmp_path_factory.mktemp("cache"))
    for name, text in (("sums", CHOOSE), ("replies", WRITE)):
        (folder / f"{name}.yaml").write_text(text.lstrip() + source.lstrip(), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def other_model(tiny_tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with all weights of its last layer turned round, so that it answers otherwise."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("other")
    tiny.save_model(tiny_tokenizer_folder, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        for weights in model.model.layers[-1].parameters():
            weights.neg_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(
    tiny_model: Path, other_model: Path, tasks_folder: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None
) -> tuple[AbilityConfig, Record]:
    config = AbilityConfig(
        output=tmp_path_factory.mktemp("ability") / "out", models={"base": str(tiny_model), "other": str(other_model)},
        tasks=("tiny_sums", "tiny_replies"), tasks_folder=tasks_folder,
    )  # fmt: skip
    return config, ability.run(config)


def _likelihood(model: Any, tokenizer: Any, question: str, choice: str) -> float:
    """An independent reference: the log-likelihood of a choice behind its question, by one plain forward."""
    import torch

    head = tokenizer(f"{question} Answer:", add_special_tokens=False)["input_ids"]
    ids = tokenizer(f"{question} Answer: {choice}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return float(sum(logits[place - 1, ids[place]] for place in range(len(head), len(ids))))


def test_scores_are_those_of_plain_likelihoods(finished: tuple[AbilityConfig, Record], tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config, record = finished
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [row for row in read_rows(config.output / "base" / ability.DOCUMENTS, ScoredDocument)
            if row.task == "tiny_sums"]  # fmt: skip
    right = 0
    for a, b in SUMS:
        found = [_likelihood(model, tokenizer, f"What is {a} plus {b}?", str(a + b + more)) for more in (0, 1, 7)]
        right += max(found) == found[0]
    assert len(rows) == len(SUMS)
    assert abs(sum(row.value for row in rows) - right) <= 1  # padding may tip one of twenty in bfloat16
    assert record.results["models"]["base"]["ability"]["tiny_sums acc"]["value"] == sum(r.value for r in rows) / 20


def test_two_models_are_compared_document_by_document(finished: tuple[AbilityConfig, Record]) -> None:
    config, record = finished
    sides = [{row.id: row.value for row in read_rows(config.output / name / ability.DOCUMENTS, ScoredDocument)
              if row.task == "tiny_sums"} for name in config.models]  # fmt: skip
    found = record.results["differences"]["other"]["tiny_sums acc"]
    assert sides[0] != sides[1]
    assert found["value"] == pytest.approx(sum(sides[1][i] - sides[0][i] for i in sides[0]) / 20)
    assert (found["n"], found["num_clusters"]) == (20, 20)
    assert tables.models_table(record).row_count == 4
    assert not (config.output / "base" / ability.RESPONSES).exists()


def test_second_run_asks_nothing(finished: tuple[AbilityConfig, Record]) -> None:
    config, record = finished
    before = (config.output / "base" / "record.json").stat().st_mtime_ns
    assert ability.run(config).results == record.results
    assert (config.output / "base" / "record.json").stat().st_mtime_ns == before


def test_endpoint_gives_the_same_scores(
    finished: tuple[AbilityConfig, Record], vllm_server: str, tiny_model: Path, tmp_path: Path
) -> None:
    engine = OpenAIEngine(base_url=vllm_server, model="tiny")
    config = finished[0].model_copy(update={"output": tmp_path / "out", "models": {}, "engine": engine,
                                            "tokenizer": str(tiny_model), "tasks": ("tiny_sums",)})  # fmt: skip
    found = ability.run(config).results["ability"]["tiny_sums acc"]
    expected = finished[1].results["models"]["base"]["ability"]["tiny_sums acc"]
    assert found["n"] == 20
    assert abs(found["value"] - expected["value"]) <= 0.1  # two engines in bfloat16


def test_chat_of_an_endpoint_writes_and_gives_no_likelihoods(
    tasks_folder: Path, vllm_server: str, tmp_path: Path, ray_session: None
) -> None:
    settings = {"engine": OpenAIEngine(base_url=vllm_server, model="tiny"), "chat_template": True,
                "tasks_folder": tasks_folder}  # fmt: skip
    done = ability.run(AbilityConfig(output=tmp_path / "a", tasks=("tiny_replies",), max_documents=4, **settings))
    assert done.results["ability"]["tiny_replies exact_match"]["n"] == 4
    with pytest.raises(InputError) as caught:
        ability.run(AbilityConfig(output=tmp_path / "b", tasks=("tiny_sums",), **settings))
    assert str(caught.value) == ("tasks: tiny_sums: needs likelihoods, which an endpoint's chat doesn't give; "
                                 "set chat_template=false, or leave the task out")  # fmt: skip


@pytest.fixture
def answered(
    tasks_folder: Path, vllm_server: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> harness.Job:
    """A job that was interrupted behind its last answer."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    engine = OpenAIEngine(base_url=vllm_server, model="tiny")
    config = AbilityConfig(output=tmp_path / "out", engine=engine, tokenizer=str(tiny_model), tasks=("tiny_sums",),
                           tasks_folder=tasks_folder)  # fmt: skip
    job = ability.job(config, None, config.output)
    harness._run(job, harness.load_tasks(job.tasks, job.tasks_folder))
    return job


def test_interrupted_job_goes_on_from_the_answers_it_kept(answered: harness.Job, free_port: int) -> None:
    nobody = {"base_url": f"http://127.0.0.1:{free_port}/v1/completions", "max_retries": 1}
    job = harness.Job(**vars(answered) | {"arguments": answered.arguments | nobody})
    assert harness.measure(job).measured[0].n == 20
    assert not Path(job.responses).exists()
    with pytest.raises(InputError, match=r"engine.base_url: .* does not answer as it should"):
        harness.measure(job)


def test_what_a_user_gets_wrong_is_one_line(tiny_model: Path, tasks_folder: Path, tmp_path: Path,
                                            ray_session: None) -> None:  # fmt: skip
    config = AbilityConfig(output=tmp_path / "out", model=str(tiny_model), tasks=("arc_challenge",))
    with pytest.raises(InputError) as caught:
        ability.run(config)
    assert str(caught.value).startswith("tasks: arc_challenge: its data is not on this machine and can't be fetched (")
    assert len(str(caught.value).splitlines()) == 1
    assert not config.output.exists()
    with pytest.raises(InputError, match="tasks: tiny_products: is no task, group or tag of the harness or of "):
        harness.load_tasks(["tiny_products"], str(tasks_folder))
    (tasks_folder / "sums.json").rename(tasks_folder / "gone.json")
    with pytest.raises(InputError, match="tasks: tiny_sums: its data is not on this machine"):
        harness.load_tasks(["tiny_sums"], str(tasks_folder))
    (tasks_folder / "gone.json").rename(tasks_folder / "sums.json")
