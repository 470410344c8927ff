"""Small finished outputs of the evaluations, with hostile texts, for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.artifacts import Outcome, read_record, run_stage
from trimtab.config import Config, placement
from trimtab.evaluation import ability, attempt_results, configurable, injection, prefill, robustness
from trimtab.evaluation.ability import AbilityConfig
from trimtab.evaluation.configurable import ConfigurableConfig
from trimtab.evaluation.harness_results import Found, Measured
from trimtab.evaluation.injection import InjectionConfig
from trimtab.evaluation.prefill import PrefillConfig
from trimtab.evaluation.reporting.config import ReportConfig, ReportedModel
from trimtab.evaluation.retention import RetentionConfig
from trimtab.evaluation.robustness import RobustnessConfig
from trimtab.evaluation.stage import about_judge
from trimtab.schemas import Attempt, RetentionRow, ScoredDocument, Verdict, write_rows
from trimtab.stats import clustered_mean

HOSTILE = "</pre><script>alert('x')</script> & <img src=http://evil.example/a.png>"
KS = (10, 20)
PROMPTS = tuple(f"prompt-{number}" for number in range(8))
CATEGORIES = dict(zip(PROMPTS, ["fraud", "fraud; privacy", None] * 3, strict=False))


class StageConfig(Config):
    output: Path = placement()


def prefill_output(output: Path, verdict_of: dict[tuple[str, int], Any], **settings: Any) -> Path:
    """Corr@k with these verdicts by (prompt, k)."""
    config = PrefillConfig(output=output, ks=KS, **settings)
    rows = [Verdict(id=f"{prompt}-{k}", request_id=prompt, group=str(k), prompt=f"{prompt} {HOSTILE}",
                    prefill=f"Sure {HOSTILE}", text=f"but {HOSTILE}", verdict=verdict_of[prompt, k],
                    category=CATEGORIES[prompt])
            for prompt in PROMPTS for k in KS]  # fmt: skip

    def work(folder: Path) -> Outcome:
        write_rows(folder / "verdicts.parquet", Verdict, rows)
        unparsed = sum(row.verdict == "unparsed" for row in rows)
        counts = {"cases": len(rows), "prompts": len(PROMPTS), "short_cases": 1, "unparsed": unparsed, "errors": 0}
        return Outcome(counts=counts, results=prefill.summarize(rows, config))

    run_stage(prefill.STAGE, output, config, {"data": "d", "model": output.parent.name}, work)
    return output


def configurable_output(output: Path, followed: int, **settings: Any) -> Path:
    """S0 and S1 of a model that follows both settings on its first prompts."""
    config = ConfigurableConfig(output=output, **settings)
    sides = (("uncensored", "no", "yes"), ("harmless", "yes", "no"))
    rows = [Verdict(id=f"{prompt}-{preset}", request_id=prompt, group=preset, prompt=prompt, text=HOSTILE,
                    verdict=wanted if number < followed else other)
            for preset, wanted, other in sides for number, prompt in enumerate(PROMPTS)]  # fmt: skip

    def work(folder: Path) -> Outcome:
        write_rows(folder / "verdicts.parquet", Verdict, rows)
        counts = {"prompts": len(PROMPTS), "answers": len(rows), "errors": 0, "unparsed": 0}
        return Outcome(counts=counts, results=configurable.summarize(rows, config))

    run_stage(configurable.STAGE, output, config, {"data": "d", "model": output.parent.name}, work)
    return output


def retention_output(output: Path, rise: float, base: Path | None = None) -> Path:
    """Losses that rise by ``rise`` for the first prompt and by more for each further one."""
    rows = [RetentionRow(id=prompt, prompt=f"Please {HOSTILE}", answer=HOSTILE, scored="Yes.", num_tokens=2,
                         nll=1 + rise * (1 + number))
            for number, prompt in enumerate(PROMPTS)]  # fmt: skip
    inputs = {"prompts": "p", "model": output.parent.name}
    if base and (record := read_record(base)):
        inputs["base"] = record.fingerprint

    def work(folder: Path) -> Outcome:
        write_rows(folder / "answers.parquet", RetentionRow, rows)
        nll = clustered_mean([row.nll for row in rows], [row.id for row in rows])
        return Outcome(counts={"prompts": len(rows)}, results={"nll": nll.model_dump()})

    run_stage("evaluate retention", output, RetentionConfig(output=output, base=base), inputs, work)
    return output


def attacked_output(output: Path, succeeds: Mapping[str, int], kind: str = "injection") -> Path:
    """Attacks, each of which succeeds on so many of the prompts; the last prompt's are refused where it doesn't."""
    settings: dict[str, Any] = {"output": output}
    config = InjectionConfig(**settings) if kind == "injection" else RobustnessConfig(**settings)
    stage, question = (injection.STAGE, "is_safe") if kind == "injection" else (robustness.STAGE, "attack_success")
    attempts = [
        Attempt(id=f"{attack}-{prompt}", request_id=prompt, attack=attack, kind=attack.partition(" ")[0],
                outcome="success" if number < count else "refused" if number == 7 and attack != "plain" else "failure",
                score=number / 10)
        for attack, count in succeeds.items() for number, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    sent = [row for row in attempts if row.outcome != "refused"]
    verdicts = [Verdict(id=row.id, request_id=row.request_id, group=row.attack, prompt=f"{row.request_id} {HOSTILE}",
                        text=f"{row.id} {HOSTILE}", verdict="no", category=CATEGORIES[row.request_id])
                for row in sent]  # fmt: skip

    def work(folder: Path) -> Outcome:
        write_rows(folder / "verdicts.parquet", Verdict, verdicts)
        write_rows(folder / "attempts.parquet", Attempt, attempts)
        results = attempt_results.summarize(attempts) | about_judge(config.judge, question)  # type: ignore[arg-type]
        counts = {"prompts": len(PROMPTS), "attacks": len(succeeds), "answers": len(sent), "refused": 1}
        return Outcome(counts=counts, results=results | {"left_out": {"forged": f"a template {HOSTILE}"}})

    run_stage(stage, output, config, {"data": "d", "attacks": "a", "model": output.parent.name}, work)
    return output


def ability_output(output: Path, num_right: int, **settings: Any) -> Path:
    """A task of eight documents, so many of which are answered right, and a perplexity, which is better lower."""
    config = AbilityConfig(output=output, tasks=("tiny",), **settings)
    values = {"acc": [float(number < num_right) for number in range(8)], "ppl": [8.0 - num_right] * 8}
    rows = tuple(ScoredDocument(id=f"{metric}-{number}", task="tiny", metric=metric, document=str(number), value=value)
                 for metric, found in values.items() for number, value in enumerate(found))  # fmt: skip
    measured = tuple(Measured("tiny", metric, sum(found) / 8, 0.1, 8, ("tiny",), True, metric == "acc")
                     for metric, found in values.items())  # fmt: skip

    def work(folder: Path) -> Outcome:
        write_rows(folder / ability.DOCUMENTS, ScoredDocument, rows)
        found = Found(measured, rows, harness_version="0.4")
        return Outcome(counts={"tasks": 1, "scores": len(rows)}, results=ability.summarize(found))

    run_stage(ability.STAGE, output, config, {"model": output.parent.name}, work)
    return output


def verdicts_of(num_yes: int) -> dict[tuple[str, int], str]:
    """Yes for so many of eight cases, by (prompt, k)."""
    cases = [(prompt, k) for prompt in PROMPTS for k in KS]
    return {case: "yes" if number % 8 < num_yes else "no" for number, case in enumerate(cases)}


def training_output(output: Path) -> Path:
    """Three steps, and one that was torn."""
    steps = [{"step": n, "steps": 3, "dpo_loss": 0.7 - n / 10, "margin": n / 10} for n in (1, 2, 3)]

    def work(folder: Path) -> Outcome:
        lines = [json.dumps(step) for step in steps]
        (folder / "steps.jsonl").write_text("\n".join([*lines, '{"step": 4, "dpo_l']), encoding="utf-8")
        return Outcome(counts={"steps": 3})

    run_stage("train", output, StageConfig(output=output), {}, work)
    return output


def two_models(folder: Path) -> ReportConfig:
    """A report on a base and a tuned model and on a training."""
    base, tuned = folder / "base", folder / "tuned"
    first = ReportedModel(name="base", prefill=prefill_output(base / "prefill", verdicts_of(2)),
                          configurable=configurable_output(base / "conf", 3),
                          retention=retention_output(base / "ret", 0.0))  # fmt: skip
    last = ReportedModel(name="tuned <b>", prefill=prefill_output(tuned / "prefill", verdicts_of(5)),
                         configurable=configurable_output(tuned / "conf", 7),
                         retention=retention_output(tuned / "ret", 0.1, first.retention))  # fmt: skip
    training = training_output(folder / "train")
    return ReportConfig(output=folder / "report", models=(first, last), training=training)


PLAIN_ATTACKS = {"plain": 1, "ceiling": 7, "persona pirate": 3, "persona actor": 2, "encoding base64": 0}


def three_models(folder: Path) -> ReportConfig:
    """A report on a base and two tuned models, with injections and attacks too."""
    models = []
    for number, (name, num_yes) in enumerate({"base": 2, "dpo": 4, "cst": 6}.items()):
        succeeds = {attack: max(0, count - number) for attack, count in PLAIN_ATTACKS.items()}
        without_ceiling = {attack: count for attack, count in succeeds.items() if attack != "ceiling"}
        models.append(ReportedModel(
            name=name, prefill=prefill_output(folder / name / "prefill", verdicts_of(num_yes)),
            configurable=configurable_output(folder / name / "conf", 2 + 2 * number),
            injection=attacked_output(folder / name / "inj", succeeds),
            robustness=attacked_output(folder / name / "rob", without_ceiling, "robustness"),
        ))  # fmt: skip
    return ReportConfig(output=folder / "report", models=tuple(models))
