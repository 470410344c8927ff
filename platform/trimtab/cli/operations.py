"""``trimtab doctor`` and ``trimtab plan``: what this machine and its cluster lack, and what a run will take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trimtab.cli import ConfigFile, DryRun, Overrides, app

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of tables.")]


@app.command("doctor")
def doctor(
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster; none: $RAY_ADDRESS, else this machine alone.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="A model folder to look at.")] = None,
    keys: Annotated[
        list[Path], typer.Option("--keys", metavar="FILE", help="A file of secrets; may be repeated.")
    ] = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option(help="Where runs will write; none: this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what will go wrong on this machine and its cluster, each finding with its remedy."""
    from trimtab.console import say, show
    from trimtab.operations import doctor as clinic

    asked = clinic.Questions(address=address, model=model, keys=tuple(keys), output=output or Path())
    found = clinic.examine(asked)
    if as_json:
        typer.echo(clinic.as_json(found))
    else:
        show(clinic.table(found))
        for line in clinic.remedies(found):
            say(line)
        say(clinic.summary(found))
    if clinic.has_errors(found):
        raise typer.Exit(1)


@app.command("plan")
def plan(
    config: ConfigFile = None,
    overrides: Overrides = [],  # noqa: B006
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Estimate a run: GPU-hours, wall time, memory, storage, cost, and where the data plane breaks."""
    import json

    from trimtab.config import load
    from trimtab.console import say, show
    from trimtab.operations import sizing
    from trimtab.operations.sizing import tables

    resolved = load(sizing.PlanConfig, config, overrides)
    if dry_run:
        typer.echo(resolved.dump_yaml(), nl=False)
        return
    made = sizing.plan(resolved)
    if as_json:
        typer.echo(json.dumps(made.as_json(), indent=2))
        return
    for line in tables.lines(made):
        say(line)
    for table in tables.tables(made):
        show(table)
