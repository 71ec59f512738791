"""Commands about a version at work: serve it, try one beside it, roll back, drill that."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from evergreen.cli.common import MODELS, Model, Models, Person, app, declared, say
from evergreen.errors import EvergreenError
from evergreen.workspace import Workspace

Replica = Annotated[
    str | None, typer.Option(help="This replica's name; host and port if left out.")
]


@app.command()
def serve(
    model: Annotated[
        list[str], typer.Argument(envvar="EVERGREEN_SERVE_MODELS", help="The models to serve.")
    ],
    models: Models = MODELS,
    host: Annotated[
        str, typer.Option(envvar="EVERGREEN_SERVE_HOST", help="The address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 picks a free one.", min=0, max=65535)] = 8080,
    replica: Replica = None,
    every: Annotated[float, typer.Option(help="Seconds between looks at the registry.")] = 1.0,
    alias: Annotated[str, typer.Option(help="The registry's alias to follow.")] = "champion",
) -> None:
    """Answer requests with the live versions: /invocations, /predict, /ping, /version, /metrics."""
    from evergreen.serving.server import serve as serve_models

    serve_models(
        [declared(models, name) for name in model],
        Workspace.from_environment(),
        host=host,
        port=port,
        replica=replica,
        every=every,
        alias=alias,
    )


@app.command()
def rollback(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger with your name.")],
    version: Annotated[
        str | None, typer.Option(help="To which version; the last verified one if left out.")
    ] = None,
    force: Annotated[bool, typer.Option(help="Even if that version is quarantined.")] = False,
    person: Person = None,
    models: Models = MODELS,
) -> None:
    """Return to an earlier version, at once and without Airflow; quarantine the one that is live."""
    from getpass import getuser

    from evergreen.lifecycle.rollback import roll_back

    done = roll_back(
        declared(models, model),
        Workspace.from_environment(),
        run_id=f"cli/{os.urandom(6).hex()}",
        reason=reason,
        person=person or getuser(),
        version=version,
        force=force,
    )
    say(done.describe())


@app.command()
def drill(model: Model, models: Models = MODELS) -> None:
    """Prove beside production that a rollback works, and how many seconds it takes."""
    from evergreen.lifecycle.drilling import drill as run_drill

    report = run_drill(
        declared(models, model), Workspace.from_environment(), run_id=f"cli/{os.urandom(6).hex()}"
    )
    say(report.describe())
    if not report.passed:
        raise typer.Exit(1)


@app.command()
def candidate(
    model: Model,
    version: Annotated[
        str | None,
        typer.Argument(help="A registered version; neither this nor --run ends the trial."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="A run of <model>.retrain: the candidate that it judged.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger with your name.")] = "",
    person: Person = None,
    models: Models = MODELS,
) -> None:
    """Try a version beside the champion, as serving.candidate declares: shadow or canary."""
    from getpass import getuser

    from evergreen.lifecycle import trial

    declaration, workspace = declared(models, model), Workspace.from_environment()
    if version is not None and run is not None:
        raise EvergreenError(f"{model}: name a version or a run to try, not both")
    key, who = f"cli/{os.urandom(6).hex()}", person or getuser()
    if version is None and run is None:
        ended = trial.end_trial(declaration, workspace, key=key, person=who, reason=reason)
        was = f"; version {ended} was" if ended else ""
        say([f"{model}: no candidate is tried any more{was}"])
        return
    if run is not None:
        version = trial.try_run(declaration, workspace, run, key=key, person=who, reason=reason)
    elif version is not None:
        trial.try_version(declaration, workspace, version, key=key, person=who, reason=reason)
    tried = declaration.serving.candidate
    share = f" for {tried.share:.0%} of the entities" if tried.mode == "canary" else ""
    say([f"{model}: version {version} is tried as {tried.mode}{share}"])
