"""Airflow for a command: one that runs already, or one started for it and ended with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from evergreen import views
from evergreen.airflow_client import AirflowClient
from evergreen.declaration import Declaration
from evergreen.errors import EvergreenError
from evergreen.replay import Replay, Row
from evergreen.standalone import Standalone
from evergreen.workspace import Workspace


@contextmanager
def connect(url: str | None) -> Iterator[AirflowClient]:
    """Log in to a running Airflow, as ``EVERGREEN_AIRFLOW_USER``/``EVERGREEN_AIRFLOW_PASSWORD``."""
    if not url:
        raise EvergreenError(
            "no Airflow to talk to: give --airflow URL, or set EVERGREEN_AIRFLOW_URL"
        )
    user = os.environ.get("EVERGREEN_AIRFLOW_USER", "admin")
    password = os.environ.get("EVERGREEN_AIRFLOW_PASSWORD", "")
    with AirflowClient(url, user, password) as client:
        yield client


def own_airflow(workspace: Workspace, project: Path, port: int = 0) -> Standalone:
    """An Airflow of the project's DAGs, below the workspace's home, not started yet."""
    return Standalone(
        workspace.home / "airflow",
        dags=project / "dags",
        plugins=project / "plugins",
        port=port,
        extra={  # all of it: the tasks must not take a place from the caller's environment
            "EVERGREEN_HOME": str(workspace.home),
            "EVERGREEN_LEDGER_URL": workspace.ledger.url.render_as_string(hide_password=False),
            "EVERGREEN_STORE_URI": workspace.store.root,
            "MLFLOW_TRACKING_URI": workspace.tracking_uri,
        },
    )


def replay_session(
    declaration: Declaration,
    datasets: Mapping[str, Path],
    until: datetime | None,
    url: str | None,
    console: Console,
) -> list[Row]:
    """Replay into the Airflow at ``url``, or into one started for it."""
    workspace = Workspace.from_environment()
    if url:
        with connect(url) as client:
            return show(Replay(declaration, workspace, client, datasets, until=until), console)
    with (
        console.status("starting Airflow"),
        own_airflow(workspace, declaration.folder.parents[2]) as airflow,
    ):
        client = airflow.client()
        console.print(f"Airflow is up at {airflow.url}")
        return show(Replay(declaration, workspace, client, datasets, until=until), console)


def show(replay: Replay, console: Console) -> list[Row]:
    """Run a replay with a progress bar; one line a partition."""
    metrics = replay.declaration.metrics
    primary, second = metrics[0], metrics[1] if len(metrics) > 1 else None
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    rows = []
    console.print(
        views.replay_heading(primary, second), style="bold", highlight=False, soft_wrap=True
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(replay.declaration.name, total=len(replay.cuts))
        for row in replay.run():
            rows.append(row)
            console.print(
                views.replay_line(row, primary, second),
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            progress.advance(task)
    return rows
