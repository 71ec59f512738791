"""``evergreen …``: check declarations, read the ledger, replay history, run a stage, ask for a retrain.

Reading commands take ``--json``. Where things are kept comes from the environment: see
`evergreen.workspace`. Errors end with status 1 and say what to do.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evergreen import views
from evergreen.declaration import Declaration, DeclarationError, model_files, read_declaration
from evergreen.errors import EvergreenError
from evergreen.workspace import Workspace

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
console = Console()
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Model = Annotated[str, typer.Argument(help="The model's name.")]
Models = Annotated[
    Path, typer.Option("--models", envvar="EVERGREEN_MODELS", help="The folder of model folders.")
]
Report = Annotated[Path | None, typer.Option("--report", help="Write the rows as JSON, too.")]
Airflow = Annotated[
    str | None,
    typer.Option("--airflow", envvar="EVERGREEN_AIRFLOW_URL", help="A running Airflow's address."),
]
MODELS = Path("include/models")
DEMO_HOME = Path(".evergreen/demo")


@app.command()
def check(models: Models = MODELS, as_json: Json = False) -> None:
    """Validate every model file, the modules and the suite it names."""
    from evergreen.checking import check_model

    found = []
    for file in model_files(models):
        try:
            check_model(read_declaration(file))
            found.append({"file": str(file), "problem": None})
        except DeclarationError as error:
            found.append({"file": str(file), "problem": str(error)})
    if not found:
        raise DeclarationError(f"{models}: no model here. A model is a folder with a model.yaml.")
    _print(found, as_json, views.checks)
    if any(entry["problem"] for entry in found):
        raise typer.Exit(1)


@app.command()
def status(
    model: Annotated[str | None, typer.Argument(help="One model; all when left out.")] = None,
    models: Models = MODELS,
    as_json: Json = False,
) -> None:
    """What is live, since when and why, and what asks for a retrain."""
    from evergreen.reporting import status_of

    workspace = Workspace.from_environment()
    declared = (
        [_declared(models, model)] if model else list(map(read_declaration, model_files(models)))
    )
    _print([status_of(d, workspace) for d in declared], as_json, views.status)


@app.command()
def history(model: Model, models: Models = MODELS, as_json: Json = False) -> None:
    """Every decision, verdict and promotion with its reasons: why is this version live?"""
    from evergreen.reporting import history_of

    _declared(models, model)
    _print(history_of(model, Workspace.from_environment()), as_json, views.history)


@app.command()
def acknowledge(
    model: Model,
    comment: Annotated[str, typer.Option(help="What you found; kept in the ledger.")],
    person: Annotated[str | None, typer.Option(help="Who you are; your login if left out.")] = None,
    models: Models = MODELS,
) -> None:
    """Let automatic retraining go on after it was stopped, as the task in Airflow does."""
    from getpass import getuser

    from evergreen.lifecycle.escalation import answer, open_escalation

    declaration, workspace = _declared(models, model), Workspace.from_environment()
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
    for line in said.describe():
        console.print(line, highlight=False, markup=False, soft_wrap=True)


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
    for line in run_stage(name, _declared(models, model), Workspace.from_environment(), moment):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


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
    rows = replay_session(_declared(models, model), datasets, moment, airflow, console)
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


def main() -> None:
    """The console script: one line of error, not a stack trace, for what Evergreen raises."""
    from evergreen.airflow_client import AirflowError
    from evergreen.standalone import StandaloneError

    try:
        app()
    except (EvergreenError, AirflowError, StandaloneError) as error:
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/]", str(error), sep="\n", highlight=False
        )
        raise SystemExit(1) from None


def _declared(models: Path, name: str) -> Declaration:
    folder = models / name
    if not folder.is_dir():
        known = ", ".join(file.parent.name for file in model_files(models)) or "none"
        raise DeclarationError(f"{models}: no model {name!r}; there are: {known}")
    return read_declaration(folder)


def _pair(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    if not file:
        raise typer.BadParameter(f"{text!r} is not NAME=FILE")
    return name, Path(file)


def _print(value: Any, as_json: bool, render: Any) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")
    else:
        render(console, value)


def _write(report: Path | None, rows: list[Any]) -> None:
    if report is not None:
        aside = report.with_name(f".{report.name}.aside")
        aside.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        aside.replace(report)
