"""General ability: what a model still knows and can do, by EleutherAI's lm-eval-harness (ARC, HellaSwag, MMLU, …).

Safety training must not cost ability (arXiv 2404.00495, §4): the same tasks before and after. The harness runs as one
task of Ray's, so that it goes where the accelerators are; its scores of single documents give the paired difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field

from trimtab import cluster, models
from trimtab.artifacts import Outcome, Record, file_fingerprint, require_record, run_stage
from trimtab.config import InputError, placement
from trimtab.engine import EngineConfig, OpenAIEngine, VLLMEngine, engine_env, weight_type
from trimtab.evaluation.harness import Job, measure
from trimtab.evaluation.harness_results import Found, Measured
from trimtab.evaluation.several import ModelsConfig, run_models
from trimtab.evaluation.stage import model_folder
from trimtab.files import LocalPath
from trimtab.schemas import ScoredDocument, make_id, read_rows, write_rows
from trimtab.stats import EMPTY, Estimate, paired_difference, wilson, with_standard_error

STAGE = "evaluate ability"
DOCUMENTS, RESPONSES = "documents.parquet", "responses"


class AbilityConfig(ModelsConfig):
    """``trimtab evaluate ability``: measure general ability with lm-eval-harness (``pip install 'trimtab[ability]'``).

    Of a vllm engine it takes the model's type, the accelerators and the CPUs; a model on accelerators is computed by
    vLLM, one on CPU by transformers. An openai engine is asked by its completions.
    """

    tasks: tuple[str, ...] = Field(("arc_challenge", "hellaswag", "mmlu", "truthfulqa_mc2"), min_length=1)
    """Tasks, groups and tags by their names in the harness, or in ``tasks_folder``."""
    tasks_folder: LocalPath | None = placement(None)
    """A folder of your own task YAML files, read besides the harness's; their ``!function`` lines run Python."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples in front of each question; none: each task's own number."""
    max_documents: int | None = Field(None, ge=1)
    """Only so many documents of each task, for a quick look; none: all of them."""
    chat_template: bool = False
    """Ask in the model's chat template. With an endpoint: by its chat, which can't be asked for likelihoods."""
    backend: Literal["hf", "vllm"] | None = None
    """What computes a model folder; none: vllm on accelerators, else hf (transformers)."""
    max_length: int | None = Field(None, ge=16)
    """Longest prompt and answer together, in tokens; what is longer loses its beginning. None: the model's own."""
    tokenizer: str | None = placement(None)
    """For an endpoint's likelihoods: folder or Hub id of its tokenizer; none: the endpoint is asked for it."""
    batch_size: int = placement(8, ge=1)
    """Prompts computed together (hf)."""
    seed: int = 1234
    """Seed of the draw of examples (the harness's own)."""


def run(config: AbilityConfig) -> Record:
    """Measure ability. Running it again goes on from the answers that are there, or skips what is done.

    Returns:
        A record whose ``results`` hold ``ability`` (an Estimate for each metric of each task or group that was asked
        for, by ``task metric``), ``parts`` (those of the tasks in these groups) and ``made_of`` (which tasks are behind
        each); with ``models``, those of each model and the paired differences from the first.

    Raises:
        InputError: a task or a model can't be used, or the harness is not installed.
    """
    inputs = {"tasks_folder": _fingerprint(config.tasks_folder)} if config.tasks_folder else {}
    if config.models:
        return run_models(STAGE, config, inputs, run, compare)
    folder = model_folder(config)
    inputs |= {"model": models.fingerprint(folder)} if folder else {}
    return run_stage(STAGE, config.output, config, inputs, partial(_work, config, folder))


def _fingerprint(folder: Path) -> str:
    """Of all files of a folder of tasks, its data too."""
    if not folder.is_dir():
        raise InputError("tasks_folder", folder, "no such folder", "give a folder of task YAML files")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return make_id(*(part for path in files for part in (path.relative_to(folder), file_fingerprint(path))))


def _work(config: AbilityConfig, folder: Path | None, output: Path) -> Outcome:
    cluster.connect(config.ray)
    found = _in_ray(config.engine, job(config, folder, output))
    write_rows(output / DOCUMENTS, ScoredDocument, found.documents)
    counts = {"tasks": len({name for one in found.measured for name in one.tasks}), "scores": len(found.documents)}
    return Outcome(counts=counts, results=summarize(found))


def _in_ray(engine: EngineConfig, todo: Job) -> Found:
    """Do a job in a process of Ray's own, which ends with it and gives its memory back."""
    import ray
    from ray.exceptions import RayTaskError

    needs: dict[str, Any] = {"num_cpus": 1}
    if isinstance(engine, VLLMEngine):
        needs = {"num_cpus": engine.cpus_per_actor, "num_gpus": engine.accelerators,
                 "runtime_env": {"env_vars": engine_env(engine)}}  # fmt: skip
    try:
        found: Found = ray.get(ray.remote(**needs, max_calls=1)(measure).remote(todo))
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    return found


def job(config: AbilityConfig, folder: Path | None, output: Path) -> Job:
    """What the harness is to do for a model folder, or for the endpoint where there is none.

    Raises:
        InputError: the endpoint's tokenizer is no model that is known here.
    """
    engine = config.engine
    fields: dict[str, Any] = {
        "tasks": config.tasks, "tasks_folder": str(config.tasks_folder.resolve()) if config.tasks_folder else None,
        "responses": str(output.resolve() / RESPONSES), "num_fewshot": config.num_fewshot,
        "max_documents": config.max_documents, "chat_template": config.chat_template, "seed": config.seed,
    }  # fmt: skip
    own = _for_endpoint(config, engine) if isinstance(engine, OpenAIEngine) else _for_folder(config, engine, folder)
    if config.max_length is not None:
        own["arguments"]["max_length"] = config.max_length
    return Job(**fields, **own)


def _for_folder(config: AbilityConfig, engine: VLLMEngine, folder: Path | None) -> dict[str, Any]:
    backend = config.backend or ("vllm" if engine.accelerators else "hf")
    arguments: dict[str, Any] = {"pretrained": str(folder), "dtype": weight_type(engine)}
    if backend == "vllm":
        arguments |= {"tensor_parallel_size": engine.tensor_parallel_size, "seed": engine.seed,
                      "max_num_seqs": engine.max_num_seqs, **engine.engine_kwargs}  # fmt: skip
        return {"backend": backend, "arguments": arguments, "batch_size": "auto"}
    if engine.accelerators > 1:
        arguments["parallelize"] = True
    device = "cuda" if engine.accelerators else "cpu"
    return {"backend": backend, "arguments": arguments, "batch_size": config.batch_size, "device": device,
            "cores": engine.cores_per_actor}  # fmt: skip


def _for_endpoint(config: AbilityConfig, engine: OpenAIEngine) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "model": engine.model, "num_concurrent": engine.num_concurrent_requests, "timeout": math.ceil(engine.timeout_s),
        "max_retries": engine.max_retries + 1,
    }  # fmt: skip
    base = engine.base_url.rstrip("/")
    if config.chat_template:
        arguments["base_url"] = f"{base}/chat/completions"
        return {"backend": "local-chat-completions", "arguments": arguments, "api_key_env": engine.api_key_env}
    arguments["base_url"] = f"{base}/completions"
    if config.tokenizer is not None:
        named = config.tokenizer
        known = Path(named).is_dir() or "/" in named  # a folder or a Hub id, of which only the tokenizer is read
        arguments |= {"tokenizer": named if known else str(models.resolve(named)), "tokenizer_backend": "huggingface"}
    return {"backend": "local-completions", "arguments": arguments, "api_key_env": engine.api_key_env}


def summarize(found: Found) -> dict[str, Any]:
    """The estimates of what was asked for and of its parts, and what each is the mean of."""
    values = _by_metric(found.documents)
    estimates = {one: _estimate(one, _values(one, values)).model_dump() for one in found.measured}
    return {
        "ability": {_label(one): estimate for one, estimate in estimates.items() if one.asked},
        "parts": {_label(one): estimate for one, estimate in estimates.items() if not one.asked},
        "made_of": {_label(one): _made_of(one, _values(one, values)) for one in found.measured},
        "task_versions": found.task_versions, "num_fewshot": found.num_fewshot,
        "harness": f"lm_eval {found.harness_version}",
    }  # fmt: skip


def _label(one: Measured) -> str:
    return f"{one.name} {one.metric}"


def _made_of(one: Measured, values: Sequence[Sequence[float]]) -> dict[str, Any]:
    return {"metric": one.metric, "tasks": list(one.tasks), "mean_over": _mean_over(one, values),
            "higher_is_better": one.higher_is_better}  # fmt: skip


def _by_metric(documents: Iterable[ScoredDocument]) -> dict[tuple[str, str], list[float]]:
    found: dict[tuple[str, str], list[float]] = {}
    for row in documents:
        found.setdefault((row.task, row.metric), []).append(row.value)
    return found


def _values(one: Measured, values: Mapping[tuple[str, str], list[float]]) -> list[list[float]]:
    """The documents' values of each task behind a metric; an empty list where they are none of its mean."""
    return [values.get((task, one.metric), []) for task in one.tasks]


def _estimate(one: Measured, values: Sequence[Sequence[float]]) -> Estimate:
    """The harness's value and standard error; where all documents agree and it sees no error, Wilson's interval."""
    if one.value is None:
        return EMPTY.model_copy(update={"n": one.n})
    flat = [value for of_task in values for value in of_task]
    if not one.standard_error and flat and set(flat) <= {0.0, 1.0} and _mean_over(one, values) == "documents":
        return wilson(round(sum(flat)), len(flat))
    bounds = (0.0, 1.0) if flat and all(0 <= value <= 1 for value in flat) else None
    return with_standard_error(one.value, one.standard_error or 0.0, one.n, bounds=bounds)


def _mean_over(one: Measured, values: Sequence[Sequence[float]]) -> Literal["documents", "tasks"] | None:
    """Whether the harness's value is the mean of all documents, the mean of its tasks' means, or neither."""
    if one.value is None or not all(values):
        return None
    flat = [value for of_task in values for value in of_task]
    if math.isclose(fmean(flat), one.value, rel_tol=1e-6, abs_tol=1e-9):
        return "documents"
    return "tasks" if math.isclose(fmean(map(fmean, values)), one.value, rel_tol=1e-6, abs_tol=1e-9) else None


def compare(before: Path, after: Path) -> dict[str, Estimate]:
    """Paired differences (after − before) over the documents that both scored, by ``task metric``.

    A metric that is no mean of its documents' values has none.
    """
    found = [require_record("models", folder, STAGE).results for folder in (before, after)]
    rows = [read_rows(folder / DOCUMENTS, ScoredDocument) for folder in (before, after)]
    made_of = {label: made for label, made in found[0]["made_of"].items()
               if label in found[0]["ability"] and made == found[1]["made_of"].get(label)}  # fmt: skip
    return {label: _difference(made, rows) for label, made in made_of.items() if made["mean_over"] is not None}


def _difference(made_of: Mapping[str, Any], rows: Sequence[Sequence[ScoredDocument]]) -> Estimate:
    metric, tasks = made_of["metric"], set(made_of["tasks"])
    sides = [[row for row in side if row.metric == metric and row.task in tasks] for side in rows]
    values = [{row.id: row.value for row in side} for side in sides]
    group_of = {row.id: row.task for row in sides[0]} if made_of["mean_over"] == "tasks" else None
    shares = all(0 <= value <= 1 for side in values for value in side.values())
    return paired_difference(
        values[0], values[1], {row.id: row.document for row in sides[0]}, group_of, bounds=(-1, 1) if shares else None
    )
