"""``trimtab submit``, ``status``, ``logs`` and ``stop``: stages as jobs of a cluster."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer

from trimtab.cli import STAGES, ConfigFile, DryRun, Overrides, app

INTERRUPTED = 130
NO_JOBS = ("serve",)
Address = Annotated[str | None, typer.Option(help="The cluster's dashboard URL; none: as for `ray job submit`.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, as `trimtab status` shows it.")]


@app.command("submit")
def submit(
    stage: Annotated[list[str], typer.Argument(metavar="STAGE", help="synthesize, train, evaluate prefill …")],
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    address: Address = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Don't follow the log.")] = False,
) -> None:
    """Run a stage as a job of a cluster, follow its log and end with its exit code."""
    from trimtab.config import load
    from trimtab.console import say
    from trimtab.operations import cluster_jobs, submission

    command = _command_of(stage)
    module, name = STAGES[command]
    resolved = load(getattr(import_module(module), name), config, overrides)
    if dry_run:
        typer.echo(resolved.dump_yaml(), nl=False)
        return
    job = submission.submit(command, resolved, address)
    say(f"{job}: submitted")
    if not no_wait:
        raise typer.Exit(_followed(cluster_jobs.connect(address), job))


def _command_of(stage: list[str]) -> str:
    from trimtab.config import InputError

    command = " ".join(stage)
    known = [name for name in STAGES if name not in NO_JOBS]
    if command in known:
        return command
    raise InputError("submit", command, "is no stage that runs as a job", f"one of: {', '.join(known)}")


def _followed(client: Any, job: str) -> int:
    """The exit code of a job after its log was followed to its end, or until Ctrl-C, which leaves the job alone."""
    from trimtab.console import say
    from trimtab.operations import cluster_jobs

    try:
        ended = cluster_jobs.follow(client, job, lambda text: typer.echo(text, nl=False))
    except KeyboardInterrupt:
        say(f"{job}: goes on without you; trimtab logs {job} --follow, or trimtab stop {job}")
        return INTERRUPTED
    code = cluster_jobs.exit_code(ended)
    say(f"{job}: {str(ended.status).lower()}{'; the same command goes on with it' if code else ''}")
    return code


@app.command("status")
def status(
    job: Annotated[str, typer.Argument(metavar="[ID]", help="One job; none: all of trimtab's.")] = "",
    address: Address = None,
) -> None:
    """List the jobs of a cluster: id, stage, state, since when."""
    from trimtab.console import say, show
    from trimtab.operations import cluster_jobs

    client = cluster_jobs.connect(address)
    jobs = [cluster_jobs.details(client, job)] if job else cluster_jobs.ours(client)
    if not jobs:
        say("no jobs of trimtab on this cluster")
        return
    show(cluster_jobs.jobs_table(jobs))
    if job and jobs[0].message:
        say(jobs[0].message)


@app.command("logs")
def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Until its end, and end with its exit code.")] = False,
    address: Address = None,
) -> None:
    """Print what a job said."""
    from trimtab.operations import cluster_jobs

    client = cluster_jobs.connect(address)
    if follow:
        raise typer.Exit(_followed(client, job))
    cluster_jobs.details(client, job)
    typer.echo(client.get_job_logs(job), nl=False)


@app.command("stop")
def stop(job: JobId, address: Address = None) -> None:
    """Stop a job; its finished parts stay, and the same submit goes on with it."""
    from trimtab.console import say
    from trimtab.operations import cluster_jobs

    say(f"{job}: {str(cluster_jobs.stop(cluster_jobs.connect(address), job).status).lower()}")
