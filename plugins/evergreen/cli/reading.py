"""Reading commands: check declarations, ask the ledger."""

from __future__ import annotations

from typing import Annotated

import typer

from evergreen import views
from evergreen.cli.common import MODELS, Json, Model, Models, app, declared, show
from evergreen.declaration import DeclarationError, model_files, read_declaration
from evergreen.workspace import Workspace


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
    show(found, as_json, views.checks)
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
    every = [declared(models, model)] if model else map(read_declaration, model_files(models))
    show([status_of(each, workspace) for each in every], as_json, views.status)


@app.command()
def history(model: Model, models: Models = MODELS, as_json: Json = False) -> None:
    """Every decision, verdict and promotion with its reasons: why is this version live?"""
    from evergreen.reporting import history_of

    declared(models, model)
    show(history_of(model, Workspace.from_environment()), as_json, views.history)


@app.command()
def rubric(model: Model, models: Models = MODELS, as_json: Json = False) -> None:
    """The ML Test Score: 28 tests of production readiness, and what to do for each one missing."""
    from evergreen.rubric import score_of

    declaration = declared(models, model)
    with Workspace.from_environment().ledger.read() as session:
        found = score_of(declaration, session)
    show(found.to_dict(), as_json, views.rubric)
