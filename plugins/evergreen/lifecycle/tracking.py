"""Everything said to MLflow: runs found again by key, models logged once, versions made once.

MLflow hands out random ids; Evergreen looks things up by its own keys first, so that a task
killed anywhere and run again finds what it had made. Nothing here reads the clock: metrics carry
the ``as_of`` of their run, and writing them twice changes nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from evergreen.declaration import Declaration
from evergreen.errors import TrainingError, unavailable
from evergreen.workspace import Workspace

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

CHAMPION = "champion"
RUN_KEY = "evergreen.run_key"
#: Seconds that an address gets to answer before the task gives up and leaves it to its retry.
PATIENCE = 4.0
#: MLflow's own retries add up to minutes; a task's retries are there for that.
_HTTP = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
_BROKEN = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "DEADLINE_EXCEEDED"})
_BATCH = 900


class _BrokenError(Exception):
    """MLflow's way of saying that something behind it doesn't work."""


def client(workspace: Workspace) -> MlflowClient:
    """MLflow's client for the workspace, once its address has answered.

    MLflow's registry looks logged models up through the process's own tracking URI, so that is
    set as well.

    :raises UnavailableError: naming the address, after `PATIENCE` seconds.
    """
    import mlflow

    for name, value in _HTTP.items():
        os.environ.setdefault(name, value)
    uri = workspace.tracking_uri
    with unavailable("MLflow", address(uri), *_unreachable()):
        _answers(uri, os.getpid())
    if mlflow.get_tracking_uri() != uri or mlflow.get_registry_uri() != uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def session(workspace: Workspace) -> Iterator[MlflowClient]:
    """The client, for a block in which whatever is broken behind it is an `UnavailableError`."""
    from mlflow.exceptions import MlflowException

    with unavailable("MLflow", address(workspace.tracking_uri), _BrokenError, *_unreachable()):
        try:
            yield client(workspace)
        except MlflowException as error:
            if error.error_code in _BROKEN:
                raise _BrokenError(str(error)) from error
            raise


def address(uri: str) -> str:
    """A URI without the credentials in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


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
    with session(workspace) as mlflow:
        if not (runs := _with_key(mlflow, experiment, run_key)):
            made = mlflow.create_run(
                experiment, tags={**tags, **nested, RUN_KEY: run_key}, run_name=run_key
            ).info.run_id
            runs = _with_key(mlflow, experiment, run_key)
            if runs[0] != made:
                mlflow.delete_run(made)
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


def find_logged_model(workspace: Workspace, run_id: str, name: str = "model") -> LoggedModel | None:
    """The run's finished logged model; what a killed attempt left half-made is deleted."""
    with session(workspace) as mlflow:
        run: Run = mlflow.get_run(run_id)
        found = mlflow.search_logged_models(
            [run.info.experiment_id], f"source_run_id = '{run_id}' AND name = '{name}'"
        )
        ready = sorted((m for m in found if m.status == "READY"), key=lambda m: m.creation_timestamp)
        for leftover in [m for m in found if m not in ready] + ready[1:]:
            mlflow.delete_logged_model(leftover.model_id)
        return ready[0] if ready else None


def delete_logged_model(workspace: Workspace, model_id: str) -> None:
    """Delete a logged model that isn't the one its run should hold."""
    with session(workspace) as mlflow:
        mlflow.delete_logged_model(model_id)


def log_model(
    workspace: Workspace, run_id: str, name: str, estimator: Any, *,
    tags: Mapping[str, str], metadata: Mapping[str, Any], **save: Any,
) -> str:  # fmt: skip
    """Log a fitted scikit-learn estimator below a run.

    The logged model is PENDING until every file is there, then READY.

    :param save: arguments of `mlflow.sklearn.save_model`.
    :returns: its URI, ``models:/m-…``.
    """
    import mlflow.sklearn
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    with session(workspace) as there, tempfile.TemporaryDirectory(prefix="evergreen-") as aside:
        experiment = there.get_run(run_id).info.experiment_id
        logged = there.create_logged_model(experiment, name, run_id, dict(tags))
        model = Model(
            artifact_path=logged.artifact_location, run_id=run_id, model_uuid=logged.model_id,
            model_id=logged.model_id, metadata=dict(metadata),
        )  # fmt: skip
        folder = f"{aside}/model"
        mlflow.sklearn.save_model(estimator, folder, mlflow_model=model, **save)
        there.log_model_artifacts(logged.model_id, folder)
        there.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        there.finalize_logged_model(logged.model_id, "READY")
    return f"models:/{logged.model_id}"


@contextmanager
def model_folder(workspace: Workspace, uri: str) -> Iterator[Path]:
    """The files of a logged or registered model, for the length of a block.

    :param uri: ``models:/…`` or ``runs:/…``: a tree's file can crash its reader, so only what
        this deployment has logged is ever opened.
    :raises TrainingError: for any other URI, and for one that MLflow doesn't hold.
    """
    import mlflow.artifacts
    from mlflow.exceptions import MlflowException

    if not uri.startswith(("models:/", "runs:/")):
        raise TrainingError(f"{uri} is not a model of this deployment: models:/… or runs:/… is")
    with tempfile.TemporaryDirectory(prefix="evergreen-") as aside:
        try:
            with session(workspace):
                folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=aside)
        except (MlflowException, FileNotFoundError) as error:
            raise TrainingError(f"{uri} can't be read from MLflow: {error}") from error
        yield Path(folder)


def register_version(
    workspace: Workspace,
    declaration: Declaration,
    mlflow_run: str,
    model_uri: str,
    tags: Mapping[str, str],
) -> str:
    """The registered version of a run's model, made when missing.

    :returns: the version's number, as text.
    """
    from mlflow.exceptions import MlflowException

    name = declaration.name
    with session(workspace) as mlflow:
        try:
            mlflow.create_registered_model(name, description=declaration.description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = mlflow.search_model_versions(f"name = '{name}' AND run_id = '{mlflow_run}'")
        versions = [int(v.version) for v in found if v.current_stage != "Deleted_Internal"]
        if versions:
            return str(min(versions))
        model_id = model_uri.removeprefix("models:/") if model_uri.startswith("models:/m-") else None
        made = mlflow.create_model_version(
            name, model_uri, mlflow_run, tags=dict(tags), model_id=model_id
        )
        return str(made.version)


def set_champion(workspace: Workspace, declaration: Declaration, version: str) -> None:
    """Point the alias ``champion`` at a version."""
    with session(workspace) as mlflow:
        mlflow.set_registered_model_alias(declaration.name, CHAMPION, version)


def champion_version(workspace: Workspace, declaration: Declaration) -> str | None:
    """The version that the alias ``champion`` points at, or None."""
    from mlflow.exceptions import MlflowException

    with session(workspace) as mlflow:
        try:
            found = mlflow.get_model_version_by_alias(declaration.name, CHAMPION)
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise
        return str(found.version)


@lru_cache(maxsize=8)
def _answers(uri: str, process: int) -> None:
    """Knock at an address until it answers, for `PATIENCE` seconds; once for each process."""
    import httpx
    import sqlalchemy as sa
    from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

    @retry(
        retry=retry_if_exception_type((httpx.TransportError, sa.exc.OperationalError)),
        stop=stop_after_delay(PATIENCE),
        wait=wait_exponential_jitter(0.2, 1.0),
        reraise=True,
    )
    def knock() -> None:
        if uri.startswith("http"):
            httpx.get(f"{uri.rstrip('/')}/health", timeout=PATIENCE)
        elif "sqlite" in uri:
            Path(sa.make_url(uri).database or "").parent.mkdir(parents=True, exist_ok=True)
        else:
            engine = sa.create_engine(uri, poolclass=sa.NullPool)
            engine.connect().close()

    knock()


def _unreachable() -> tuple[type[Exception], ...]:
    """What "not reachable" looks like, from MLflow's and the artifacts' side."""
    import httpx
    import requests
    import sqlalchemy as sa

    causes = (
        httpx.TransportError, requests.RequestException, sa.exc.OperationalError,
        ConnectionError, TimeoutError, PermissionError, NotADirectoryError, FileExistsError,
    )  # fmt: skip
    # Only a process that has spoken to S3 can meet its errors.
    botocore = sys.modules.get("botocore.exceptions")
    return (*causes, botocore.BotoCoreError, botocore.ClientError) if botocore else causes
