"""What commands share: the application, their options, and how they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evergreen.declaration import Declaration, DeclarationError, model_files, read_declaration

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
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
Person = Annotated[str | None, typer.Option(help="Who you are; your login if left out.")]
MODELS = Path("include/models")


def declared(models: Path, name: str) -> Declaration:
    """A model by name.

    :raises DeclarationError: when there is none of that name.
    """
    folder = models / name
    if not folder.is_dir():
        known = ", ".join(file.parent.name for file in model_files(models)) or "none"
        raise DeclarationError(f"{models}: no model {name!r}; there are: {known}")
    return read_declaration(folder)


def show(value: Any, as_json: bool, render: Any) -> None:
    """Print a value as a table, or as JSON."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")
    else:
        render(console, value)


def say(lines: Iterable[str]) -> None:
    """Print lines as they are."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
