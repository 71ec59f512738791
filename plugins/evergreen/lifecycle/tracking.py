"""Everything said to MLflow in one place: runs found again by key, and the models below them.

MLflow hands out random ids; Evergreen looks things up by its own keys first, so that a task
killed anywhere and run again finds what it had made. Nothing here reads the clock: metrics carry
the ``as_of`` of their run, and writing them twice changes nothing.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from evergreen.declaration import Declaration
from evergreen.errors import TrainingError
from evergreen.lifecycle.connection import client, session
from evergreen.lifecycle.registry import (
    CHAMPION,
    champion_version,
    delete_logged_model,
    find_logged_model,
    load_model,
    log_model,
    register_version,
    set_champion,
)
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

__all__ = [
    "CHAMPION",
    "RUN_KEY",
    "champion_version",
    "children",
    "client",
    "delete_logged_model",
    "experiment_id",
    "find_logged_model",
    "find_or_create_run",
    "finish_run",
    "load_model",
    "log_artifact",
    "log_figure",
    "log_metrics",
    "log_model",
    "log_params",
    "metrics_of",
    "register_version",
    "set_champion",
    "set_tags",
    "tags_of",
]

RUN_KEY = "evergreen.run_key"
_BATCH = 900


def experiment_id(workspace: Workspace, declaration: Declaration) -> str:
    """The model's experiment, made when missing, by whoever comes first.

    With a database for a tracking URI, MLflow would put artifacts into the current folder; they
    go into the store.

    :raises TrainingError: when a person has deleted it.
    """
    from mlflow.exceptions import MlflowException

    name, uri = workspace.experiment(declaration), workspace.tracking_uri
    location = None if uri.startswith("http") else workspace.store.uri(f"mlflow/{declaration.name}")
    with session(workspace) as mlflow:
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            try:
                return str(mlflow.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = mlflow.get_experiment_by_name(name)
        if found.lifecycle_stage != "active":
            raise TrainingError(
                f"the MLflow experiment {name} was deleted; bring it back with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        return str(found.experiment_id)


def find_or_create_run(
    workspace: Workspace,
    declaration: Declaration,
    run_key: str,
    tags: Mapping[str, str],
    parent: str | None = None,
) -> str:
    """The id of the one run with this key; a second call, or a second process, finds the first's.

    :param parent: the run it is nested below.
    """
    experiment = experiment_id(workspace, declaration)
    nested = {"mlflow.parentRunId": parent} if parent else {}
    every = {**tags, **nested, RUN_KEY: run_key}
    with session(workspace) as mlflow:
        while not (runs := _with_key(mlflow, experiment, run_key)):
            made = mlflow.create_run(experiment, tags=every, run_name=run_key).info.run_id
            if _with_key(mlflow, experiment, run_key) == [made]:
                return str(made)
            # Someone else was as quick: whoever sees two withdraws, so two never stay.
            mlflow.delete_run(made)
            time.sleep(random.uniform(0.0, 0.2))  # noqa: S311 - only so that both don't repeat it
        return runs[0]


def _with_key(mlflow: MlflowClient, experiment: str, run_key: str) -> list[str]:
    if "'" in run_key:
        raise ValueError(f"a run key holds no quotes: {run_key}")
    found = mlflow.search_runs(
        [experiment],
        f"tags.`{RUN_KEY}` = '{run_key}'",
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
    )
    return [run.info.run_id for run in found]


def children(workspace: Workspace, declaration: Declaration, parent: str) -> dict[str, str]:
    """The runs below ``parent``, by key."""
    experiment = experiment_id(workspace, declaration)
    with session(workspace) as mlflow:
        runs = mlflow.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=5000
        )
        return {run.data.tags[RUN_KEY]: run.info.run_id for run in runs if RUN_KEY in run.data.tags}


def tags_of(workspace: Workspace, run_id: str) -> dict[str, str]:
    """A run's tags."""
    with session(workspace) as mlflow:
        return dict(mlflow.get_run(run_id).data.tags)


def metrics_of(workspace: Workspace, run_id: str) -> dict[str, float]:
    """A run's metrics."""
    with session(workspace) as mlflow:
        return dict(mlflow.get_run(run_id).data.metrics)


def set_tags(workspace: Workspace, run_id: str, tags: Mapping[str, str]) -> None:
    """Set a run's tags in one request."""
    from mlflow.entities import RunTag

    with session(workspace) as mlflow:
        mlflow.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def log_params(workspace: Workspace, run_id: str, params: Mapping[str, Any]) -> None:
    """Log parameters; the same ones again change nothing, MLflow refuses others."""
    from mlflow.entities import Param

    entries = [Param(key, str(value)[:6000]) for key, value in params.items()]
    with session(workspace) as mlflow:
        for start in range(0, len(entries), 100):
            mlflow.log_batch(run_id, params=entries[start : start + 100])


def log_metrics(
    workspace: Workspace, run_id: str, metrics: Mapping[str, float], as_of: datetime
) -> None:
    """Log metrics as of a moment, at step 0; the same ones again change nothing."""
    from mlflow.entities import Metric

    stamp = int(as_of.timestamp() * 1000)
    entries = [Metric(key, float(value), stamp, 0) for key, value in metrics.items()]
    with session(workspace) as mlflow:
        for start in range(0, len(entries), _BATCH):
            mlflow.log_batch(run_id, metrics=entries[start : start + _BATCH])


def log_artifact(workspace: Workspace, run_id: str, name: str, content: bytes) -> None:
    """Put bytes at ``name`` (like ``evaluation/roc.png``) among a run's artifacts."""
    target = PurePosixPath(name)
    folder = None if str(target.parent) == "." else str(target.parent)
    with tempfile.TemporaryDirectory(prefix="evergreen-") as aside, session(workspace) as mlflow:
        file = Path(aside) / target.name
        file.write_bytes(content)
        mlflow.log_artifact(run_id, str(file), folder)


def log_figure(workspace: Workspace, run_id: str, name: str, figure: Figure) -> None:
    """Log a figure as PNG; the same figure gives the same bytes."""
    content = BytesIO()
    figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    log_artifact(workspace, run_id, name, content.getvalue())


def finish_run(workspace: Workspace, run_id: str, status: str = "FINISHED") -> None:
    """End a run, or leave it as it is when it has ended so before."""
    with session(workspace) as mlflow:
        if mlflow.get_run(run_id).info.status != status:
            mlflow.set_terminated(run_id, status)
