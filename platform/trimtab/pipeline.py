"""The whole loop in a row: measure the base, synthesize, train, measure again, report, serve and ask twice, promote.

Just calls of the stages, each skipped when its record exists with the same fingerprint. No DAG framework.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trimtab import cluster, models, registry
from trimtab.artifacts import Outcome, Record, read_record, run_stage, write_text
from trimtab.cluster import RayConfig
from trimtab.config import Config, placement
from trimtab.console import say, show
from trimtab.engine import VLLMEngine
from trimtab.evaluation import prefill, report, suite
from trimtab.evaluation.configurable import ConfigurableConfig
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.evaluation.reporting.config import ReportConfig, ReportedModel
from trimtab.evaluation.retention import RetentionConfig
from trimtab.files import LocalPath, Location
from trimtab.judging import JudgeConfig, RulesJudge
from trimtab.registry import Gates, PromoteConfig
from trimtab.safety import CONFIGURATIONS
from trimtab.serving import ServeConfig, refuse_taken_port, running, throwaway_key
from trimtab.sources import SourceConfig
from trimtab.synthesis import run as synthesis
from trimtab.synthesis.config import SynthesisConfig
from trimtab.synthesis.quality import QualityConfig
from trimtab.synthesis.recipes.course_correction import CourseCorrectionRecipe
from trimtab.training import run as training
from trimtab.training.config import LoRA, LossConfig, TrainingConfig, ValidationConfig

STAGE = "pipeline"


class TrainingSettings(LossConfig):
    """What the pipeline sets of ``trimtab train``."""

    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    likelihood_weight: float = Field(1.0, ge=0)
    """Weight of the likelihood term on the demonstrations."""
    num_train_epochs: float = Field(1, gt=0)
    """Passes over the groups."""
    groups_per_step: int = Field(4, ge=1)
    """Groups of one optimizer step; a group and its flip stand side by side."""
    max_length: int = Field(1024, ge=16)
    """Prompt and one response together, in tokens."""
    lora: LoRA | None = LoRA()
    """Adapters; none trains all parameters."""
    validation: ValidationConfig = ValidationConfig()
    """Validation at checkpoints; ``metric: corr_mean`` measures Corr@k on ``num_validation_prompts``."""
    save_steps: int = placement(25, ge=1)
    """Steps between checkpoints."""
    num_workers: int = placement(1, ge=1)
    """Ray Train workers; a group is not split, so more than ``groups_per_step`` find no work."""
    use_gpu: bool = placement(False)
    """One GPU a worker."""
    cpus_per_worker: float = placement(1, gt=0)
    """Logical CPUs that a worker asks of Ray."""
    zero_stage: Literal[0, 1, 2, 3] = placement(2)
    """DeepSpeed ZeRO stage."""
    gradient_checkpointing: bool = placement(False)
    """Compute activations again in the backward pass instead of keeping them."""
    max_failures: int = placement(1, ge=0)
    """Times that lost workers are started again, from the last checkpoint."""


class PromotionSettings(Config):
    """The tuned model's name in the registry, and what it must reach for an alias to mean it."""

    name: str
    """It is registered as the next version of this name."""
    alias: str = "production"
    """What then means this version."""
    gates: Gates = Gates()


class PipelineConfig(Config):
    """``trimtab pipeline``, and what ``make demo`` runs."""

    output: LocalPath = placement(Path("runs/demo"))
    """Folder of all outputs."""
    data: Location | None = placement(None)
    """Requests in PKU-SafeRLHF format, a file or its URI; none: the shipped sample."""
    num_evaluation_prompts: int = Field(48, ge=2)
    """Prompts held out for evaluation."""
    num_validation_prompts: int = Field(0, ge=0)
    """Prompts held out besides, on which Corr@k of the checkpoints is measured beside the training."""
    model: str = placement("smollm2-135m")
    """The base model; an embedded one is fetched first."""
    num_requests: int | None = Field(None, ge=1)
    """At most so many training requests; none: all that pass the filter."""
    min_words: int = Field(80, ge=1)
    """A request is kept for training when its harmful response has more words than this."""
    synthesis_max_tokens: int = Field(128, ge=1)
    """New tokens of each synthesized response."""
    safe_response: str = Field("model", pattern="^(model|source)$")
    """The best response of a group: the model's own answer, or the row's safe one where it has one."""
    quality: QualityConfig = QualityConfig()
    """What a synthesized response must be like; others are quarantined."""
    training: TrainingSettings = TrainingSettings()
    judge: JudgeConfig = RulesJudge()
    """Who judges continuations and answers, also those of checkpoints."""
    max_tokens: int = Field(64, ge=1)
    """New tokens of an answer in the S0/S1 and retention measurements and from the endpoint."""
    endpoint: bool = placement(True)
    """Serve the tuned model on this machine and ask it; a job on a cluster leaves it out."""
    port: int = placement(8000, ge=1, le=65535)
    """Port of the endpoint."""
    promote: PromotionSettings | None = placement(None)
    """Register and promote the tuned model at the end, if its evaluations pass the gates; none: leave it out."""
    engine: VLLMEngine = VLLMEngine()
    ray: RayConfig = placement(RayConfig())

    @property
    def source(self) -> SourceConfig:
        """The one source of all stages."""
        return SourceConfig(
            data=self.data, num_evaluation_prompts=self.num_evaluation_prompts,
            num_validation_prompts=self.num_validation_prompts,
        )  # fmt: skip


def run(config: PipelineConfig, keep_ray: bool = False) -> Record:
    """Run all stages; a second call skips what is done.

    Args:
        keep_ray: leave this process connected to Ray.

    Returns:
        The record of the endpoint's answers, or of the report where there is no endpoint.

    Raises:
        InputError: a stage's, or the tuned model falls below a gate.
    """
    base = prepare(config)
    tuned = str(config.output / "train" / "model")
    with _step(config, 1, "base model: Corr@k, S0 and S1, benign chat"):
        measure(config, base, config.output / "base", None)
    with _step(config, 2, "synthesis: ranked groups and their flips"):
        synthesis.run(synthesis_config(config, base))
    with _step(config, 3, "training: DPO on token tries, harmless and uncensored at once"):
        training.run(training_config(config, base), validation_fn=corr_validation(config))
    with _step(config, 4, "tuned model: the same measurements"):
        measure(config, tuned, config.output / "tuned", config.output / "base" / "retention")
    with _step(config, 5, "report"):
        record = _report(config)
    if config.endpoint:
        with _step(config, 6, "endpoint: one prompt under two safety configurations"):
            record = ask_endpoint(config, tuned)
    if config.promote:
        with _step(config, num_steps(config), "promotion"):
            promote(config, config.promote, Path(tuned))
    if not keep_ray:
        cluster.disconnect()
    say(f"done in {sum(step_seconds(config.output).values()):.0f} s of work; everything is in {config.output}")
    return record


@contextlib.contextmanager
def _step(config: PipelineConfig, number: int, title: str) -> Iterator[None]:
    """Announce a step and add its time, over all runs, to ``seconds.json``."""
    say(f"[{number}/{num_steps(config)}] {title}")
    started = time.monotonic()
    try:
        yield
    finally:
        taken = time.monotonic() - started
        if taken >= 1 and config.output.is_dir():
            seconds = step_seconds(config.output)
            seconds[str(number)] = round(seconds.get(str(number), 0) + taken, 1)
            write_text(config.output / "seconds.json", json.dumps(seconds))


def num_steps(config: PipelineConfig) -> int:
    """Five, and one each for the endpoint and the promotion."""
    return 5 + config.endpoint + (config.promote is not None)


def step_seconds(output: Path) -> dict[str, float]:
    """Wall seconds spent on each step of a pipeline's folder, by its number."""
    path = output / "seconds.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _report(config: PipelineConfig) -> Record:
    reported = report_config(config)
    record = report.run(reported)
    show(report.summary_table(reported))
    say(f"  {_how_measured(config)}")
    say(f"  report: {config.output / 'report' / 'report.html'}")
    return record


def promote(config: PipelineConfig, settings: PromotionSettings, model: Path) -> None:
    """Register the tuned model and let the alias mean it; a second time changes nothing.

    Raises:
        InputError: its evaluations fall below a gate; the alias stays where it was.
    """
    version = registry.register(settings.name, model, models.fingerprint(model))
    evaluations = {name: config.output / "tuned" / name for name in ("prefill", "configurable", "retention")}
    seen = registry.promote(
        PromoteConfig(model=version, alias=settings.alias, gates=settings.gates, **evaluations)
    )  # fmt: skip
    passed = ", ".join(f"{gate} {value:.3f}" for gate, value in seen.items()) or "no gate was set"
    say(f"  {settings.name}@{settings.alias} is now {version} ({passed})")


def prepare(config: PipelineConfig) -> str:
    """Fetch the model where it is an embedded one; its reference."""
    if config.model in models.EMBEDDED:
        models.fetch(config.model)
    models.resolve(config.model)
    if config.promote:
        registry.refuse_bad_name(config.promote.name)
        registry.refuse_bad_name(config.promote.alias)
    if config.endpoint and read_record(config.output / "endpoint") is None:
        refuse_taken_port("127.0.0.1", config.port)  # before the long stages, not after them
    return config.model


def measure(config: PipelineConfig, model: str, folder: Path, base: Path | None) -> tuple[Record, Record, Record]:
    """Corr@k, S0/S1 and retention of a model, with one start of the engine."""
    return suite.run(folder / "generations", *measurements(config, model, folder, base))


def measurements(
    config: PipelineConfig, model: str, folder: Path, base: Path | None
) -> tuple[PrefillConfig, ConfigurableConfig, RetentionConfig]:
    """What of a model is measured; base and tuned model alike."""
    common: dict[str, Any] = {"model": model, "engine": config.engine, "ray": config.ray}
    judged = {"source": config.source, "judge": config.judge, **common}
    return (
        PrefillConfig(output=folder / "prefill", **judged),
        ConfigurableConfig(output=folder / "configurable", max_tokens=config.max_tokens, **judged),
        RetentionConfig(output=folder / "retention", base=base, max_tokens=config.max_tokens, **common),
    )


def synthesis_config(config: PipelineConfig, model: str) -> SynthesisConfig:
    """The synthesis stage of this pipeline."""
    recipe = CourseCorrectionRecipe.model_validate({
        "source": config.source, "num_requests": config.num_requests, "min_words": config.min_words,
        "max_tokens": config.synthesis_max_tokens, "safe_response": config.safe_response,
    })  # fmt: skip
    folder = config.output / "groups"
    return SynthesisConfig(
        output=folder, model=model, recipe=recipe, quality=config.quality, engine=config.engine, ray=config.ray
    )


def training_config(config: PipelineConfig, model: str) -> TrainingConfig:
    """The training stage of this pipeline."""
    settings = {name: getattr(config.training, name) for name in TrainingSettings.model_fields}
    data = (config.output / "groups",)
    return TrainingConfig(output=config.output / "train", model=model, data=data, ray=config.ray, **settings)


def corr_validation(config: PipelineConfig) -> training.ValidationFn | None:
    """The function that measures Corr@k of a checkpoint's model on the validation prompts; None without any."""
    if not config.num_validation_prompts:
        return None
    source = config.source.model_copy(update={"split": "validation"})
    settings = {"source": source, "engine": config.engine, "ray": config.ray, "judge": config.judge}

    def measure_corr(model: Path) -> dict[str, float]:
        with tempfile.TemporaryDirectory(prefix="trimtab-corr-") as folder:
            record = prefill.run(PrefillConfig(output=Path(folder) / "corr", model=str(model), **settings))
        return {"corr_mean": float(record.results["corr_mean"]["value"])}

    return measure_corr


def _how_measured(config: PipelineConfig) -> str:
    """Which judge said so, and over how many cases."""
    record = read_record(config.output / "tuned" / "prefill")
    assert record is not None
    counts = record.counts
    return (
        f"{counts['cases']} prefill cases of {counts['prompts']} prompts held out of training, "
        f"{counts['unparsed']} unparsed; brackets are 95 % intervals; judge: {record.results['judge']}"
    )


def report_config(config: PipelineConfig) -> ReportConfig:
    """The report of this pipeline."""
    folder = config.output
    reported = tuple(
        ReportedModel(name=name, prefill=folder / name / "prefill", configurable=folder / name / "configurable",
                      retention=folder / name / "retention")
        for name in ("base", "tuned")
    )  # fmt: skip
    return ReportConfig(
        output=folder / "report", models=reported, training=folder / "train", synthesis=folder / "groups"
    )


class EndpointConfig(Config):
    """The step that serves a model and asks it."""

    output: Path = placement()
    prompt: str
    max_tokens: int
    configurations: tuple[str, ...] = CONFIGURATIONS


def ask_endpoint(config: PipelineConfig, model: str) -> Record:
    """Serve the model, ask one evaluation prompt under each configuration through the OpenAI SDK, and stop."""
    asked = EndpointConfig(output=config.output / "endpoint", prompt=_prompt(config), max_tokens=config.max_tokens)
    served = ServeConfig(model=model, port=config.port, engine=config.engine, ray=config.ray)

    def work(output: Path) -> Outcome:
        say(f"  starting on {served.host}:{served.port} (about a minute)")
        with throwaway_key(served) as (keyed, secret), running(keyed) as url:
            answers = {preset: _ask(url, secret, served.name, asked, preset) for preset in asked.configurations}
        return Outcome(counts={"answers": len(answers)}, results={"prompt": asked.prompt, "answers": answers})

    record = run_stage("ask endpoint", asked.output, asked, {"model": models.fingerprint(Path(model))}, work)
    say(f"  prompt: {asked.prompt}")
    for preset, answer in record.results["answers"].items():
        say(f"  safety={preset}: {' '.join(answer.split())}")
    return record


def _prompt(config: PipelineConfig) -> str:
    from trimtab.sources import read_requests, split_requests

    return split_requests(read_requests(config.source)[0], config.source)[1][0].prompt


def _ask(url: str, secret: str, model: str, asked: EndpointConfig, preset: str) -> str:
    from openai import OpenAI

    with OpenAI(base_url=url, api_key=secret) as client:
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": asked.prompt}], max_tokens=asked.max_tokens,
            temperature=0, extra_body={"safety": preset},
        )  # fmt: skip
    return answer.choices[0].message.content or ""
