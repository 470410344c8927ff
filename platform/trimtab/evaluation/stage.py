"""What every evaluation has in common: a plan, one run of the engine, verdicts, and a finish that scores them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trimtab import cluster, models
from trimtab.artifacts import Outcome, Record, read_record, run_stage
from trimtab.chat import ControlGuard
from trimtab.cluster import RayConfig
from trimtab.config import Config, InputError, placement
from trimtab.engine import EngineConfig, VLLMEngine, generate, was_refused
from trimtab.evaluation.prompts import forged
from trimtab.files import LocalPath
from trimtab.judging import Item, JudgeConfig, Judged, Question, described, judge_all, require_usable
from trimtab.schemas import CONTENT_CHARS, AnyRow, Generation, PlanRow, Quarantined, Request, Verdict, read_rows
from trimtab.sources import SourceConfig, read_requests, split_requests

Made = Callable[[list[PlanRow]], list[Generation]]
Finish = Callable[[list[Generation], Path], Outcome]


class EvaluationConfig(Config):
    """The fields of every evaluation."""

    output: LocalPath = placement()
    """Folder of the output: rows as Parquet, record.json."""
    model: str = placement("smollm2-135m")
    """The model to measure: a folder, a Hub id or the embedded default."""
    engine: EngineConfig = VLLMEngine()
    ray: RayConfig = placement(RayConfig())


def run_evaluation(
    stage: str, config: EvaluationConfig, inputs: dict[str, str], plan: list[PlanRow], finish: Finish,
    made: Made | None, judge: JudgeConfig | None = None,
) -> Record:  # fmt: skip
    """Generate the plan (or take what the caller made of it), score it and write the record.

    A finished output is taken up again for the rows on which an endpoint failed, and for the texts on which its judge
    did: all else is kept or in the cache.
    """
    folder = model_folder(config)
    inputs = inputs | ({"model": models.fingerprint(folder)} if folder else {})

    def work(output: Path) -> Outcome:
        if judge:
            require_usable(judge)
        if made:
            return finish(made(plan), output)
        cluster.connect(config.ray)
        written = generate(plan, output, folder, config.engine, stage)
        refuse_silence(written, config.engine)
        return finish(written, output)

    again = judge_failed(config.output) or (made is None and endpoint_failed(config))
    return run_stage(stage, config.output, config, inputs, work, again)


def refuse_silence(written: list[Generation], engine: EngineConfig) -> None:
    """An endpoint that failed on every row was not measured.

    Raises:
        InputError: with what it said to the first.
    """
    failed = [row.error for row in written if row.error and not was_refused(row.error)]
    if isinstance(engine, VLLMEngine) or not failed or len(failed) < len(written):
        return
    problem = f"answered none of {len(written)} requests (the first: {failed[0][:200]})"
    remedy = "check the address, the key and engine.model; the same command goes on"
    raise InputError("engine.base_url", engine.base_url, problem, remedy)


def endpoint_failed(config: EvaluationConfig) -> bool:
    """Whether a finished output has rows on which its endpoint failed, which the same command asks for again.

    A vLLM's errors are of the row (it is too long) and would only come again.
    """
    return not isinstance(config.engine, VLLMEngine) and _counted(config.output, "errors") > 0


def is_finished(output: Path) -> bool:
    """Whether nothing is left to do for an output."""
    return read_record(output) is not None and not judge_failed(output)


def judge_failed(output: Path) -> bool:
    """Whether a finished output has texts on which its judge failed, which the same command asks about again."""
    return _counted(output, "judge_errors") > 0


def _counted(output: Path, name: str) -> int:
    """A count of a finished output; 0 where it is unfinished."""
    done = read_record(output)
    return done.counts.get(name, 0) if done else 0


def finished_rows(folder: Path, name: str, cls: type[AnyRow]) -> list[AnyRow]:
    """The rows of a finished output that are to be compared with another's.

    Raises:
        InputError: it is unfinished.
    """
    if read_record(folder) is None:
        raise InputError("runs", folder, "has no record.json (unfinished)", "finish the evaluation first")
    return read_rows(folder / f"{name}.parquet", cls)


def model_folder(config: EvaluationConfig) -> Path | None:
    """The model's folder, or None where an endpoint holds the model."""
    return models.resolve(config.model) if isinstance(config.engine, VLLMEngine) else None


def give_verdicts(
    drafts: list[Verdict], made: list[Generation], question: Question, judge: JudgeConfig,
    ray: RayConfig | None = None, output: Path | None = None,
) -> list[Verdict]:  # fmt: skip
    """The drafts with what the judge says; one whose generation failed is not judged and stays as it is.

    Args:
        drafts: unparsed verdicts, one for each generation.
        output: the evaluation's folder, where a vllm judge keeps its answers.
    """
    rows = list(zip(drafts, made, strict=True))
    items = [Item(row.id, row.prompt, row.text, row.prefill) for row, written in rows if not written.error]
    found = iter(judge_all(items, question, judge, "judge", ray, output / "judge" if output else None))
    return [row if written.error else _with_verdict(row, next(found)) for row, written in rows]


def _with_verdict(draft: Verdict, said: Judged) -> Verdict:
    return draft.model_copy(update={name: getattr(said, name) for name in ("verdict", "score", "raw", "error")})


def about_judge(judge: JudgeConfig, question: Question) -> dict[str, Any]:
    """What a record says of its judge: one line with its known agreement, and its identity."""
    return {"judge": described(judge, question), "judge_identity": judge.identity()}


def control_guard(config: EvaluationConfig) -> ControlGuard | None:
    """What tells texts that hold control tokens of the model; None for an endpoint, which renders for itself."""
    folder = model_folder(config)
    return ControlGuard.from_folder(str(folder)) if folder else None


def held_out(source: SourceConfig, guard: ControlGuard | None = None) -> tuple[list[Request], list[Quarantined]]:
    """The held-out requests, one a prompt, and what is set aside: bad rows of the file, and requests that hold control
    tokens of the model to be measured or ask another one's prompt.

    Raises:
        InputError: the source can't be used, or no request is left.
    """
    requests, bad = read_requests(source)
    held = split_requests(requests, source)[1]
    if not held:
        field = f"num_{source.split}_prompts"
        raise InputError(field, getattr(source, field), "holds out no prompt to measure", "set it above 0")
    reasons = {request.id: forged(guard, request.prompt, request.harmful) for request in held}
    asked: dict[str, Request] = {}
    for request in held:
        if reason := reasons[request.id]:
            bad.append(_set_aside(request, reason))
        elif (first := asked.setdefault(request.prompt, request)) is not request:
            bad.append(_set_aside(request, f"asks the prompt of row {first.source_row + 1} again, which counts once"))
    if not asked:
        problem = f"all held-out requests hold control tokens of the model ({reasons[held[0].id]})"
        raise InputError("data", source.path, problem, "remove them from the texts")
    return list(asked.values()), bad


def _set_aside(request: Request, reason: str) -> Quarantined:
    content = request.prompt[:CONTENT_CHARS]
    return Quarantined(source_row=request.source_row, reason=reason, content=content, id=request.id)


def with_categories(verdicts: list[Verdict], requests: list[Request]) -> list[Verdict]:
    """The verdicts with the category of their request, where it has one."""
    categories = {request.id: request.category for request in requests}
    return [row.model_copy(update={"category": categories.get(row.request_id)}) for row in verdicts]
