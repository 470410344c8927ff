"""``trimtab``: one command for each stage, each with ``--config FILE``, ``--set key=value`` and ``--dry-run``.

Only typer is loaded here; a command imports its stage when it runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.cli.keys import keys_app

if TYPE_CHECKING:
    from trimtab.files import AnyPath

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__.split("\n")[0], rich_markup_mode=None)
model_app = typer.Typer(no_args_is_help=True, help="Fetch, list and promote models.")
evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model.")
app.add_typer(model_app, name="model")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(keys_app, name="keys")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; see jobs/configs/.")]
Overrides = Annotated[list[str], typer.Option("--set", help="key=value, may be repeated; wins over the file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")]

Work = Callable[[Any], Any]

# command: (module of its stage, its configuration's class)
STAGES = {
    "synthesize": ("trimtab.synthesis.run", "SynthesisConfig"),
    "export": ("trimtab.synthesis.export", "ExportConfig"),
    "train": ("trimtab.training.run", "TrainingConfig"),
    "evaluate prefill": ("trimtab.evaluation.prefill", "PrefillConfig"),
    "evaluate configurable": ("trimtab.evaluation.configurable", "ConfigurableConfig"),
    "evaluate injection": ("trimtab.evaluation.injection", "InjectionConfig"),
    "evaluate robustness": ("trimtab.evaluation.robustness", "RobustnessConfig"),
    "evaluate ability": ("trimtab.evaluation.ability", "AbilityConfig"),
    "evaluate retention": ("trimtab.evaluation.retention", "RetentionConfig"),
    "evaluate judge": ("trimtab.evaluation.calibrate", "CalibrationConfig"),
    "report": ("trimtab.evaluation.report", "ReportConfig"),
    "serve": ("trimtab.serving", "ServeConfig"),
    "pipeline": ("trimtab.pipeline", "PipelineConfig"),
}


def run_stage_command(
    command: str, config: Path | None, overrides: list[str], dry_run: bool, work: Work | None = None
) -> None:
    """Load a stage's configuration and run the stage, with the libraries' noise in a log file that is named.

    Args:
        work: called with the configuration instead of the stage's ``run``; may print, and give no record.
    """
    from trimtab import cluster
    from trimtab.artifacts import disk_errors_are_input_errors
    from trimtab.config import load
    from trimtab.console import quiet, say

    module, name = STAGES[command]
    stage = import_module(module)
    resolved = load(getattr(stage, name), config, overrides)
    if dry_run:
        typer.echo(resolved.dump_yaml(), nl=False)
        return
    log = log_of(command, getattr(resolved, "output", None))
    with disk_errors_are_input_errors(log), quiet(log), cluster.left_at_the_end():
        say(f"{command}: log of the libraries: {log}")
        place = getattr(resolved, "output", log)
        with _failure_in_one_line(command, log), disk_errors_are_input_errors(place):
            record = (work or stage.run)(resolved)
        if record is not None:
            say(f"{command}: done, {', '.join(f'{value} {key}' for key, value in record.counts.items())}")


def log_of(command: str, output: AnyPath | None) -> Path:
    """Where the libraries' noise goes: beside the output, or below ``$TRIMTAB_HOME/logs`` where that is in a store."""
    from urllib.parse import quote

    from trimtab import registry

    if output is None:
        return Path(f"trimtab-{command}.log")
    if isinstance(output, Path):
        return Path(f"{output}.log")
    return registry.home() / "logs" / f"{quote(str(output), safe='')[-200:]}.log"


@contextlib.contextmanager
def _failure_in_one_line(command: str, log: Path) -> Iterator[None]:
    """What isn't the user's fault: one line for the reader, the traceback for the log, exit code 1.

    SIGTERM, by which Ray ends a job and a service manager a process, unwinds the stack as Ctrl-C does; exit code 143.
    """
    from trimtab.artifacts import is_disk_error
    from trimtab.config import InputError
    from trimtab.console import say

    terminated: list[int] = []

    def end(number: int, frame: object) -> None:
        terminated.append(number)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except InputError:
        raise
    except (KeyboardInterrupt, SystemExit):
        say(f"{command}: interrupted; the same command goes on")
        if terminated:  # where it was caught in ``ray.get``, Ray has made another exit of it
            sys.exit(128 + terminated[0])
        raise
    except Exception as error:
        if is_disk_error(error):
            raise
        traceback.print_exc()
        last = (str(error).strip().splitlines() or [""])[-1]
        say(f"{command}: FAILED: {type(error).__name__}: {last[:300]} (see the end of {log}; the same command goes on)")
        raise typer.Exit(1) from error
    finally:
        signal.signal(signal.SIGTERM, before)


def _measured(command: str, resolved: Any) -> Any:
    """An evaluation of one or more models, and its table."""
    from trimtab.console import say, show
    from trimtab.evaluation import tables

    record = import_module(STAGES[command][0]).run(resolved)
    show(tables.models_table(record))
    for line in tables.detectable_lines(record):
        say(f"  {line}")
    return record


def _command(command: str, help_text: str, table: bool = False) -> None:
    parent, _, name = command.rpartition(" ")
    work = partial(_measured, command) if table else None

    def invoke(config: ConfigFile = None, overrides: Overrides = [], dry_run: DryRun = False) -> None:  # noqa: B006
        run_stage_command(command, config, overrides, dry_run, work)

    (evaluate_app if parent else app).command(name, help=help_text)(invoke)


_command("train", "Train on ranked groups: DPO by token tries, on Ray Train and DeepSpeed.")
_command("evaluate prefill", "Corr@k: does the model turn away after a harmful start?", table=True)
_command("evaluate configurable", "S0 and S1: does the model follow its safety configuration?", table=True)
_command("evaluate injection", "Can the caller switch a harmless configuration to the uncensored one?", table=True)
_command("evaluate robustness", "How often attacks succeed, by templates from a file.", table=True)
_command("evaluate retention", "What general chat lost: loss per token on the base's benign answers.")
_command("evaluate judge", "How far a judge agrees with labels, and with which kind of text it doesn't.")
_command("serve", "Serve a model behind an OpenAI-compatible endpoint with a safety setting per request.")
_command("pipeline", "Evaluate, synthesize, train, evaluate again, report and serve, in one go.")


@app.command("synthesize")
def synthesize(
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    plan: Annotated[bool, typer.Option("--plan", help="Write the plan, say what it will take, and stop.")] = False,
    preview: Annotated[int, typer.Option(min=0, help="Run so many requests to the end and show their groups.")] = 0,
    retry_quarantined: Annotated[bool, typer.Option(help="Generate once more what was quarantined.")] = False,
) -> None:
    """Make ranked preference groups (C2-SYN, CST, imports, mixtures) and their flips."""
    from trimtab.config import InputError

    if plan + bool(preview) + retry_quarantined > 1:
        raise InputError("synthesize", "--plan, --preview, --retry-quarantined", "exclude one another", "give one")
    run_stage_command("synthesize", config, overrides, dry_run, _synthesis_work(plan, preview, retry_quarantined))


@evaluate_app.command("ability")
def ability(
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    tasks: Annotated[str, typer.Option("--tasks", metavar="NAME,NAME", help="Tasks of lm-eval-harness.")] = "",
) -> None:
    """General ability by lm-eval-harness (ARC, HellaSwag, MMLU, TruthfulQA or any other of its tasks)."""
    asked = [f"tasks=[{tasks}]"] if tasks else []
    run_stage_command("evaluate ability", config, [*overrides, *asked], dry_run, partial(_measured, "evaluate ability"))


@app.command("report")
def report(
    runs: Annotated[list[str], typer.Argument(metavar="[RUN]...", help="Outputs: FOLDER or NAME=FOLDER.")] = [],  # noqa: B006
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
) -> None:
    """Write one self-contained HTML report of evaluations."""
    import json

    given = [f"runs={json.dumps(runs)}", *overrides] if runs else overrides
    run_stage_command("report", config, given, dry_run, _reported)


def _reported(resolved: Any) -> Any:
    """The report, its headline, and where it is."""
    from trimtab.console import say, show
    from trimtab.evaluation import report as stage

    record = stage.run(resolved)
    show(stage.summary_table(resolved))
    say(f"  report: {resolved.output / 'report.html'}")
    return record


@app.command("export")
def export(
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    push: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Send dataset/ to this Hub repository.")] = "",
) -> None:
    """Write ranked groups as preference pairs for TRL, as JSON lines or as a dataset with a card."""
    run_stage_command("export", config, [*overrides, f"push_to={push}"] if push else overrides, dry_run)


def _synthesis_work(plan: bool, preview: int, retry_quarantined: bool) -> Work:
    def work(resolved: Any) -> Any:
        from trimtab.console import say
        from trimtab.synthesis import run as stage
        from trimtab.synthesis.preview import show_groups

        if plan:
            for line in stage.plan(resolved):
                say(f"  {line}")
            return None
        if preview:
            return show_groups(stage.preview(resolved, preview))
        return stage.run(resolved, retry_quarantined=retry_quarantined)

    return work


@model_app.command("fetch")
def fetch(name: Annotated[str, typer.Argument(help="An embedded model, such as smollm2-135m.")]) -> None:
    """Fetch an embedded model and convert it to safetensors."""
    from trimtab import models, registry
    from trimtab.console import quiet, say

    with quiet(registry.home() / "fetch.log"):
        say(f"{name}: {models.fetch(name)}")


@model_app.command("list")
def list_models() -> None:
    """List the registered models: versions, aliases, folders."""
    from trimtab import registry

    for name in registry.names():
        moved = registry.aliases(name)
        for version, entry in registry.versions(name).items():
            meant_by = " ".join(f"@{alias}" for alias, at in moved.items() if at == version)
            typer.echo(f"{name}@{version}  {entry['created']}  {entry['folder']}  {meant_by}".rstrip())


@model_app.command("promote")
def promote(config: ConfigFile = None, overrides: Overrides = [], dry_run: DryRun = False) -> None:  # noqa: B006
    """Let an alias (production) mean a registered model, if its evaluations pass the gates."""
    from trimtab import registry
    from trimtab.config import load

    resolved = load(registry.PromoteConfig, config, overrides)
    if dry_run:
        typer.echo(resolved.dump_yaml(), nl=False)
        return
    seen = registry.promote(resolved)
    name = resolved.model.partition("@")[0]
    passed = ", ".join(f"{gate} {value:.3f}" for gate, value in seen.items()) or "no gate was set"
    typer.echo(f"{name}@{resolved.alias} is now {resolved.model} ({passed})")


from trimtab.cli import operations as _operations  # noqa: E402, F401  commands that need what stands above
from trimtab.cli import submit as _submit  # noqa: E402, F401  its commands, which need what stands above


def run_job(command: str) -> None:
    """Entry of a job script: the command of that name with this process's arguments."""
    main([*command.split(), *sys.argv[1:]])


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. What the user got wrong is one line on standard error and exit code 2."""
    from trimtab.config import InputError

    try:
        app(arguments, prog_name="trimtab")
    except InputError as error:
        print(f"trimtab: {error}", file=sys.stderr)
        sys.exit(2)
