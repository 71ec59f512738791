"""Commands that run something: a stage, a retrain, history again, the demo."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evergreen.cli.common import (
    MODELS,
    Airflow,
    Model,
    Models,
    Person,
    Report,
    app,
    console,
    declared,
    say,
)
from evergreen.errors import EvergreenError
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from evergreen.ledger.tables import ActRow

DEMO_HOME = Path(".evergreen/demo")


@app.command()
def acknowledge(
    model: Model,
    comment: Annotated[str, typer.Option(help="What you found; kept in the ledger.")],
    person: Person = None,
    models: Models = MODELS,
) -> None:
    """Let automatic retraining go on after it was stopped, as the task in Airflow does."""
    from getpass import getuser

    from evergreen.lifecycle.escalation import answer, open_escalation

    declaration, workspace = declared(models, model), Workspace.from_environment()
    stopped = open_escalation(declaration, workspace)
    if stopped is None:
        raise EvergreenError(f"{model} is not stopped: there is nothing to acknowledge")
    said = answer(
        declaration,
        workspace,
        stopped.id,
        run_id=f"cli__{os.urandom(6).hex()}",
        answer="acknowledged",
        person=person or getuser(),
        comment=comment,
    )
    say(said.describe())


@app.command()
def pause(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger with your name.")],
    person: Person = None,
    models: Models = MODELS,
) -> None:
    """Hold automatic retraining back until somebody resumes it. Rollbacks go on."""
    from getpass import getuser

    from evergreen.ledger import acts

    declared(models, model)
    key, who = f"cli/{os.urandom(6).hex()}", person or getuser()
    with Workspace.from_environment().ledger.write() as session:
        held = acts.pause(session, model, key=key, person=who, comment=reason)
    say(_paused(held) if held.key == key else _paused_before(held))


@app.command()
def resume(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger with your name.")] = "",
    person: Person = None,
    models: Models = MODELS,
) -> None:
    """Let automatic retraining go on after it was paused."""
    from getpass import getuser

    from evergreen.ledger import acts

    declared(models, model)
    key, who = f"cli/{os.urandom(6).hex()}", person or getuser()
    with Workspace.from_environment().ledger.write() as session:
        held = acts.resume(session, model, key=key, person=who, comment=reason)
    if held is None:
        say([f"{model}: automatic retraining isn't paused; nothing was recorded"])
        return
    say(
        [
            f"{model}: automatic retraining goes on",
            "the next decision reads every signal that stayed open; cooldown and budget apply",
        ]
    )


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="ingest, arbitrate, extract, …, gate, score")],
    model: Model,
    as_of: Annotated[
        datetime,
        typer.Option("--as-of", help="The moment to run for, like 2013-02-01T00:00:00+00:00."),
    ],
    models: Models = MODELS,
) -> None:
    """Run one stage in the foreground, for a debugger. Promotes nothing."""
    from evergreen.foreground import run_stage

    moment = as_of if as_of.tzinfo else as_of.astimezone()
    say(run_stage(name, declared(models, model), Workspace.from_environment(), moment))


@app.command()
def train_job(
    root: Annotated[Path, typer.Option(help="The job's folder, as SageMaker lays it out.")] = Path(
        "/opt/ml"
    ),
    models: Models = MODELS,
) -> None:
    """Train as a job of SageMaker's does: what a container runs that `compute.train` names."""
    from evergreen.lifecycle.remote_training import run_container

    reference = run_container(models, root)
    say([f"trained: {reference.digest[:12]} {reference.uri}"])


@app.command()
def retrain(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why; kept in the ledger.")],
    airflow: Airflow = None,
    tune: Annotated[bool, typer.Option(help="Search parameters anew.")] = False,
) -> None:
    """Start the retrain DAG, as its button in Airflow's UI does."""
    from evergreen.session import connect

    with connect(airflow) as client:
        stamp = f"manual__{os.urandom(6).hex()}"
        run = client.trigger(f"{model}.retrain", stamp, {"reason": reason, "tune": tune})
        console.print(f"started {run['dag_id']} {run['dag_run_id']} at {client.url}")


@app.command()
def replay(
    model: Model,
    dataset: Annotated[
        Path, typer.Argument(help="Parquet or CSV with all rows of the model's own table.")
    ],
    source: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE for each further source.")
    ] = None,
    until: Annotated[datetime | None, typer.Option(help="Leave out rows from then on.")] = None,
    airflow: Airflow = None,
    models: Models = MODELS,
    report: Report = None,
) -> None:
    """Land a dataset partition by partition in a running Airflow, or in one started for it."""
    from evergreen.session import replay_session

    datasets = {"data": dataset, **dict(_pair(text) for text in source or [])}
    moment = until.astimezone() if until and not until.tzinfo else until
    rows = replay_session(declared(models, model), datasets, moment, airflow, console)
    _write(report, rows)


@app.command()
def demo(
    report: Report = None,
    leave: Annotated[bool, typer.Option("--exit", help="End when the year is over.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove an earlier demo first.")] = False,
    months: Annotated[int, typer.Option(min=2, max=12, help="How many months.")] = 12,
    home: Annotated[Path, typer.Option(help="Where the demo keeps its things.")] = DEMO_HOME,
    port: Annotated[int, typer.Option(help="Airflow's port; 0 picks a free one.")] = 0,
    policy: Annotated[str, typer.Option(help="Retrain as declared, or monthly.")] = "declared",
) -> None:
    """A year of New York flights through Airflow: watched, retrained, promoted on evidence."""
    from evergreen.demo import run_demo

    stay = sys.stdout.isatty() and not leave
    run_demo(
        console,
        home,
        stay=stay,
        fresh=fresh,
        months=months,
        port=port,
        policy=policy,
        done=lambda rows: _write(report, rows),
    )


def _paused(held: ActRow) -> list[str]:
    """What a pause means."""
    return [
        f"{held.model}: automatic retraining is paused by {held.person}: {held.comment}",
        "signals stay open; a retrain under way is finished, and may go live",
        "scoring, monitoring, rollbacks and a person's retrain go on",
        f"to let it go on: evergreen resume {held.model}",
    ]


def _paused_before(held: ActRow) -> list[str]:
    """Whose pause holds already."""
    return [
        f"{held.model}: automatic retraining is paused already by {held.person}: {held.comment}",
        f"since {held.recorded_at:%Y-%m-%d %H:%M} UTC",
        "nothing was recorded",
    ]


def _pair(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    if not file:
        raise typer.BadParameter(f"{text!r} is not NAME=FILE")
    return name, Path(file)


def _write(report: Path | None, rows: list[Any]) -> None:
    if report is not None:
        aside = report.with_name(f".{report.name}.aside")
        aside.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        aside.replace(report)
